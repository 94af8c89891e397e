"""Which projector of a repository comes along with a model of it, and under which name. Pure.

Repositories call projectors as they like, `mmproj-F16.gguf` in most of them, one of several types beside models of
several quantisations. Here they stand in one folder with those of other repositories, where the catalog finds the one
of a model by its name (`catalog_projectors.py`); so one whose name does not begin its model's is given such a name.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence

from packtrain.broker.errors import ModelFetchFailed
from packtrain.workers.catalog_projectors import TYPES, key_of, name_of
from packtrain.workers.files.hub import Repo, RepoFile
from packtrain.workers.model_files import SUFFIX

_MARK = re.compile(r"(?<![a-z0-9])mmproj(?![a-z0-9])", re.IGNORECASE)
_TYPE = re.compile(r"(?<![a-z0-9])(b?f16|f32|i?q\d\w*)$", re.IGNORECASE)
#: What names of models end with, and their projectors' do not.
_QUANTIZATION = re.compile(r"[-._](?:ud[-_])?(?:i?q\d\w*|tq\d\w*|b?f16|f32|mxfp\d\w*)$", re.IGNORECASE)


def is_projector(path: str) -> bool:
    """Whether a file of a repository is one, as its name says.

    >>> [is_projector(path) for path in ("mmproj-F16.gguf", "tiny.mmproj-q8_0.gguf", "vision/tiny-Q8_0.gguf")]
    [True, True, False]
    """
    return path.lower().endswith(SUFFIX) and bool(_MARK.search(_stem(path)))


def projector_of(repo: Repo, model: str, wish: str = "") -> RepoFile | None:
    """The projector that comes along with a model.

    Args:
        model: Path of the model, or of a part of it.
        wish: A type (`q8_0`) or the path of a projector; empty: of several types the first of `TYPES`; none: none.

    Raises:
        ModelFetchFailed: What is wished for is not there.
    """
    if wish.lower() == "none" or is_projector(model):
        return None
    if wish.lower().endswith(SUFFIX):
        named = next((file for file in repo.files if file.path == wish), None)
        if named is None:
            raise _lacking(repo, model, wish)
        return named
    able = _of_model([file for file in repo.files if is_projector(file.path)], model)
    if wish:
        able = [file for file in able if type_of(file.path) == wish.upper()]
        if not able:
            raise _lacking(repo, model, wish)
    return min(able, key=_rank, default=None)


def local_names(projector: str, model: str) -> Iterator[str]:
    """Names by which the catalog gives it to the model, the best one first.

    Args:
        projector: Its path in the repository.
        model: File name of the model here, without `.gguf` and the number of its part.

    >>> list(local_names("mmproj-F16.gguf", "gemma-3-4b-it-Q4_K_M"))
    ['gemma-3-4b-it-mmproj-f16.gguf', 'gemma-3-4b-it-Q4_K_M-mmproj-f16.gguf']
    """
    name = name_of(_stem(projector))
    if name and key_of(model).startswith(name):
        yield posixpath.basename(projector)
    kind = type_of(projector).lower()
    for begin in (_QUANTIZATION.sub("", model), model):
        yield f"{begin}-mmproj{'-' * bool(kind)}{kind}{SUFFIX}"


def type_of(path: str) -> str:
    """Type of its weights as its name has it, in capitals; empty: it does not say."""
    found = _TYPE.search(_stem(path))
    return found[1].upper() if found else ""


def _of_model(projectors: Sequence[RepoFile], model: str) -> list[RepoFile]:
    """Those in the model's folder or one above: that are called like it, else without a name, else the only ones."""
    beside = [file for file in projectors if _folder(model).startswith(_folder(file.path))]
    key, names = key_of(_stem(model)), {name_of(_stem(file.path)) for file in beside}
    own = max((name for name in names if name and key.startswith(name)), key=len, default="")
    if not own and len(names) == 1:
        return beside
    return [file for file in beside if name_of(_stem(file.path)) == own]


def _rank(file: RepoFile) -> tuple[int, int, str]:
    kind = type_of(file.path)
    return -len(_folder(file.path)), TYPES.index(kind) if kind in TYPES else len(TYPES), file.path


def _folder(path: str) -> str:
    return posixpath.dirname(path) + "/" if "/" in path else ""


def _stem(path: str) -> str:
    return posixpath.basename(path)[: -len(SUFFIX)]


def _lacking(repo: Repo, model: str, wish: str) -> ModelFetchFailed:
    known = [file.path for file in repo.files if is_projector(file.path)]
    has = f"it has {', '.join(known[:12])}" if known else "it has none"
    return ModelFetchFailed(f"{repo.name} has no projector {wish!r} for {model!r}: {has}; say --mmproj otherwise")
