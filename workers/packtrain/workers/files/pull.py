"""A pull: one model of a hub's repository, all its parts and its projector, into the models folder of this node."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from packtrain.broker.errors import ModelFetchFailed
from packtrain.broker.ids import slug
from packtrain.broker.pulls import HubFile, PullRequest, PullStatus, may_fit
from packtrain.workers.files.fetch import disk_free, need_space
from packtrain.workers.files.hub import Repo, RepoFile
from packtrain.workers.files.part_file import Held, PartFile, remove_others
from packtrain.workers.files.pull_projectors import is_projector, local_names, projector_of
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
    """The models that a repository holds, smallest first, then its projectors.

    Args:
        budget: Bytes that the node may use.
    """
    files = [file for file in repo.files if file.path.lower().endswith(SUFFIX)]
    groups: dict[str, list[RepoFile]] = {}
    for file in files:
        match = _PART.fullmatch(file.path)
        groups.setdefault(match[1] if match else file.path, []).append(file)
    found = [_listed(repo, group, budget) for group in groups.values()]
    return sorted(found, key=lambda model: (model.is_projector, model.size, model.file))


def _listed(repo: Repo, group: Sequence[RepoFile], budget: int) -> HubFile:
    path, size = min(file.path for file in group), sum(file.size for file in group)
    with_it = projector_of(repo, path)
    extra = with_it.size if with_it else 0
    return HubFile(
        file=path, size=size, parts=len(group), fits=may_fit(size + extra, budget), is_projector=is_projector(path),
        projector=with_it.path if with_it else "", projector_size=extra,
    )  # fmt: skip


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
    folder.mkdir(parents=True, exist_ok=True)
    projector = projector_of(repo, request.file, request.mmproj)
    if projector:
        files.append(_checked(repo, projector))
        places.append(_projector_place(projector, places[0], hashes))
    total = sum(file.size for file in files)
    told = PullStatus(
        total=total, projector=printable(projector.path) if projector else "",
        projector_size=projector.size if projector else 0,
    )  # fmt: skip
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
            return told.model_copy(update={"file": printable(file.path), "done": total - left})

        need = sum(part.size - part.done for _, part in missing)
        need_space(need, disk_free(folder), what=request.file, folder=folder)
        for file, part in missing:
            on_status(status(file))
            if part.done < part.size:
                hub.bring(repo, file, part, lambda file=file: on_status(status(file)))  # type: ignore[misc]
            part.check()
        # The projector first and the first part last: with that the catalog sees a model, and looks what is beside it.
        for _, part in reversed(missing):
            part.put_into_place()
            note_sha256(part.final, hashes, part.sha256)
    end = {"state": "done", "file": printable(files[0].path), "done": total, "model": slug(_model_stem(places[0]))}
    return told.model_copy(update={**end, "paths": tuple(str(place) for place in places)})


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
    return [_checked(repo, by_path[name]) for name in names]


def _checked(repo: Repo, file: RepoFile) -> RepoFile:
    if not file.sha256:
        raise ModelFetchFailed(f"{repo.name} has no sha256 for {file.path!r}, so it cannot be checked; copy it by hand")
    return file


def _projector_place(projector: RepoFile, model: Path, hashes: Path) -> Path:
    """Where it goes beside its model: another projector may have the best name already."""
    places = [model.with_name(name) for name in local_names(projector.path, _model_stem(model))]
    return next((place for place in places if not place.exists() or _is(place, projector, hashes)), places[-1])


def _part(stack: ExitStack, place: Path, file: RepoFile) -> PartFile:
    try:
        return stack.enter_context(PartFile(place, file.size, file.sha256))
    except Held as held:
        raise ModelFetchFailed(f"{held}; wait for that") from held


def _is_there(place: Path, file: RepoFile, hashes: Path) -> bool:
    if not place.exists():
        return False
    if _is(place, file, hashes):
        return True
    raise ModelFetchFailed(f"{place} is there and is another file; rename or remove it")


def _is(place: Path, file: RepoFile, hashes: Path) -> bool:
    return place.stat().st_size == file.size and file_sha256(place, hashes) == file.sha256


def _model_stem(place: Path) -> str:
    match = _PART.fullmatch(place.name)
    return match[1] if match else place.stem
