"""A pull: one model of a hub's repository, all its parts, into the models folder of this node."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from packtrain.broker.errors import ModelFetchFailed
from packtrain.broker.ids import slug
from packtrain.broker.pulls import HubFile, PullRequest, PullStatus, may_fit
from packtrain.workers.files.fetch import disk_free, need_space
from packtrain.workers.files.hub import Repo, RepoFile
from packtrain.workers.files.part_file import Held, PartFile, remove_others
from packtrain.workers.model_files import SUFFIX, parts_of, printable
from packtrain.workers.receipts import file_sha256, note_sha256

_PART = re.compile(r"(.+)-\d{5}-of-\d{5}\.gguf", re.ASCII | re.IGNORECASE)


class Source(Protocol):
    """Implemented by `hub.Hub`."""

    def look(self, repo: str, revision: str) -> Repo:
        """What a repository holds."""
        ...

    def bring(self, repo: Repo, file: RepoFile, part: PartFile, on_bytes: Callable[[], None]) -> None:
        """Write the bytes of a file that are not in `part` yet."""
        ...


def models_in(repo: Repo, budget: int) -> list[HubFile]:
    """The models that a repository holds, smallest first.

    Args:
        budget: Bytes that the node may use.
    """
    files = [file for file in repo.files if file.path.lower().endswith(SUFFIX)]
    groups: dict[str, list[RepoFile]] = {}
    for file in files:
        match = _PART.fullmatch(file.path)
        groups.setdefault(match[1] if match else file.path, []).append(file)
    found = [
        HubFile(
            file=min(file.path for file in group), size=(size := sum(file.size for file in group)), parts=len(group),
            fits=may_fit(size, budget),
        )
        for group in groups.values()
    ]  # fmt: skip
    return sorted(found, key=lambda model: (model.size, model.file))


def pull(
    request: PullRequest, hub: Source, folder: Path, hashes: Path, on_status: Callable[[PullStatus], None]
) -> PullStatus:
    """Bring a model. Blocks; says how far it is by `on_status`, often.

    Args:
        folder: Of this node's models.
        hashes: JSON file with known hashes.

    Raises:
        ModelFetchFailed: There is no such file, or it cannot be brought.
    """
    repo = hub.look(request.repo, request.revision)
    files = _wanted(repo, request.file)
    places = [folder / posixpath.basename(file.path) for file in files]
    total = sum(file.size for file in files)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        missing = []
        for file, place in zip(files, places, strict=True):
            if not _is_there(place, file, hashes):
                missing.append((file, _part(stack, place, file)))
        for _, part in missing:
            remove_others(part.final, keep=part.sha256)
            part.take_up(lambda _: None)

        def status(file: RepoFile) -> PullStatus:
            left = sum(part.size - part.done for _, part in missing)
            return PullStatus(file=printable(file.path), done=total - left, total=total)

        need = sum(part.size - part.done for _, part in missing)
        need_space(need, disk_free(folder), what=request.file, folder=folder)
        for file, part in missing:
            on_status(status(file))
            if part.done < part.size:
                hub.bring(repo, file, part, lambda file=file: on_status(status(file)))  # type: ignore[misc]
            part.check()
        for _, part in reversed(missing):  # the first part last: with it the catalog sees a model
            part.put_into_place()
            note_sha256(part.final, hashes, part.sha256)
    return PullStatus(
        state="done", file=printable(files[0].path), done=total, total=total, model=_model_id(places[0]),
        paths=tuple(str(place) for place in places),
    )  # fmt: skip


def _wanted(repo: Repo, path: str) -> list[RepoFile]:
    """The file and all parts that belong to it."""
    by_path = {file.path: file for file in repo.files}
    match = _PART.fullmatch(path)
    first = path if not match else f"{match[1]}-00001-of-{path[-10:-5]}{path[-5:]}"
    names = [str(part) for part in parts_of(Path(first))]
    lacking = [name for name in names if name not in by_path]
    if lacking or not path.lower().endswith(SUFFIX):
        known = [model.file for model in models_in(repo, 0)]
        if path in by_path:
            reason = "parts of it are missing there" if lacking else "it is no GGUF file"
        else:
            reason = f"it has no such file; it has {', '.join(known[:12]) or 'no GGUF files'}"
        raise ModelFetchFailed(f"cannot pull {path!r} from {repo.name}: {reason}")
    for name in names:
        if not by_path[name].sha256:
            raise ModelFetchFailed(f"{repo.name} has no sha256 for {name!r}, so it cannot be checked; copy it by hand")
    return [by_path[name] for name in names]


def _part(stack: ExitStack, place: Path, file: RepoFile) -> PartFile:
    try:
        return stack.enter_context(PartFile(place, file.size, file.sha256))
    except Held as held:
        raise ModelFetchFailed(f"{held}; wait for that") from held


def _is_there(place: Path, file: RepoFile, hashes: Path) -> bool:
    if not place.exists():
        return False
    if place.stat().st_size == file.size and file_sha256(place, hashes) == file.sha256:
        return True
    raise ModelFetchFailed(f"{place} is there and is another file; rename or remove it")


def _model_id(place: Path) -> str:
    match = _PART.fullmatch(place.name)
    return slug(match[1] if match else place.stem)
