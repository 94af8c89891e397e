"""The hub: what a Hugging Face repository holds, and the bytes of its files, by the `huggingface_hub` library.

HF_ENDPOINT, HF_TOKEN and the rest of the library's variables count. Its own download begins anew in every process and
compares sizes only; so the bytes go by its session into one of our part files instead, which goes on behind its last
byte and is checked by the sha256 that the hub has for every large file.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from packtrain.broker.errors import ModelFetchFailed, SetupError
from packtrain.workers.files.part_file import PartFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: Of asking what a repository holds, seconds.
LOOK_TIMEOUT_S = 20.0
#: Of connecting, and of every read, seconds.
READ_TIMEOUT_S = 30.0
#: Waits between tries that bring no byte, seconds.
RETRY_S = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class RepoFile:
    """One file of a repository."""

    path: str
    size: int
    sha256: str  # empty for small files, which the hub keeps otherwise


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository at one commit."""

    name: str
    commit: str
    files: tuple[RepoFile, ...]


class Hub:
    """The hub that HF_ENDPOINT names.

    Raises:
        SetupError: The library is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("huggingface_hub") is None:
            raise SetupError("`packtrain pull` needs huggingface_hub; install packtrain with its [hub] extra")
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        self._api: HfApi = HfApi(library_name="packtrain")

    def look(self, repo: str, revision: str) -> Repo:
        """What a repository holds.

        Raises:
            ModelFetchFailed: There is none, it is not for us, or the hub does not answer.
        """
        from huggingface_hub import errors

        ask = partial(self._api.model_info, repo, revision=revision, files_metadata=True, timeout=LOOK_TIMEOUT_S)
        with self._explained(repo, revision, ""):
            try:
                info = ask()
            except errors.HTTPError as error:  # type: ignore[attr-defined]
                if isinstance(error, errors.HfHubHTTPError):
                    raise
                info = ask()  # the library keeps connections, and the hub may have closed this one meanwhile
        files = [
            RepoFile(sibling.rfilename, sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else "")
            for sibling in info.siblings or ()
        ]
        return Repo(repo, info.sha or revision, tuple(files))

    def bring(self, repo: Repo, file: RepoFile, part: PartFile, on_bytes: Callable[[], None]) -> None:
        """Write the bytes of a file that are not in `part` yet.

        Raises:
            ModelFetchFailed: As of `look`; what came is kept.
        """
        from huggingface_hub import errors, hf_hub_url

        url = hf_hub_url(repo.name, file.path, revision=repo.commit, endpoint=self._api.endpoint)
        best, tries = part.done, 0
        with self._explained(repo.name, repo.commit, file.path):
            while part.done < file.size:
                try:
                    self._stream(url, file, part, on_bytes)
                except errors.HTTPError as error:  # type: ignore[attr-defined]
                    if isinstance(error, errors.HfHubHTTPError) and not _may_pass(error.response.status_code):
                        raise
                    # Bytes that come anew, of a hub without ranges, are no progress.
                    tries = 0 if part.done > best else tries + 1
                    if tries == len(RETRY_S):
                        raise
                    time.sleep(RETRY_S[tries])
                best = max(best, part.done)

    def _stream(self, url: str, file: RepoFile, part: PartFile, on_bytes: Callable[[], None]) -> None:
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        headers = build_hf_headers(library_name="packtrain")
        headers["Accept-Encoding"] = "identity"
        if part.done:
            headers["Range"] = f"bytes={part.done}-"
        # Redirects to a content server are followed, without our token when it is another host.
        with get_session().stream("GET", url, headers=headers, timeout=READ_TIMEOUT_S) as reply:
            if reply.is_error:
                reply.read()
            hf_raise_for_status(reply)
            if part.done and reply.status_code != HTTPStatus.PARTIAL_CONTENT:
                part.begin_anew()
            for piece in reply.iter_bytes():
                if len(piece) > file.size - part.done:
                    raise ModelFetchFailed(f"{url} sends more than the {file.size} bytes that the hub spoke of")
                part.write(piece)
                on_bytes()

    @contextmanager
    def _explained(self, repo: str, revision: str, path: str) -> Iterator[None]:
        """The library's errors as ours."""
        from huggingface_hub import errors

        hub = self._api.endpoint
        try:
            yield
        except errors.GatedRepoError as error:
            raise ModelFetchFailed(
                f"{repo} is gated; accept its terms at {hub}/{repo}, and set HF_TOKEN to a token of that account"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ModelFetchFailed(f"{repo} has no revision {revision!r}; look at {hub}/{repo}/branches") from error
        except errors.RepositoryNotFoundError as error:
            raise ModelFetchFailed(
                f"{hub} has no model {repo!r}, or it is private; check the name, or set HF_TOKEN"
            ) from error
        except errors.EntryNotFoundError as error:
            raise ModelFetchFailed(f"{repo} has no file {path!r} any more; pull again") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            raise ModelFetchFailed(f"{hub} answered {status} for {repo}; try again later") from error
        except (errors.HTTPError, ConnectionError) as error:  # type: ignore[attr-defined]
            raise ModelFetchFailed(
                f"{hub} cannot be reached ({error}); check network and HF_ENDPOINT, and pull again: what came is kept"
            ) from error
        except ValueError as error:  # a name that cannot be, an answer that is no JSON
            raise ModelFetchFailed(f"{repo}: {' '.join(str(error).split())}") from error


def _may_pass(status: int) -> bool:
    """Whether an answer may be another one in a moment."""
    return status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or status >= 500
