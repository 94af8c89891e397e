"""Pulls: model files from a hub, as a client asks a node for them and the node tells how far it is.

The record of a pull is one JSON text in Redis that its node renews each second. One that has vanished before its end
tells that the node has, too.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, ValidationError

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.fields import Input, Report

#: While it runs: a node that is gone is noticed by then. After the end: time to read how it ended.
RUNNING_TTL_MS: Final = 15_000
ENDED_TTL_MS: Final = 3_600_000

_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"


class PullRequest(Input):
    """What to pull."""

    id: str = Field(pattern=r"^[0-9a-f]{32}$")
    repo: Annotated[str, StringConstraints(pattern=rf"^{_NAME}/{_NAME}$")]
    file: str = Field("", max_length=500, description="path in the repository; empty: only list what there is")
    revision: str = Field("main", max_length=200, description="branch, tag or commit")
    mmproj: str = Field(
        "", max_length=500,
        description="what projector comes along: its type, its path in the repository, or none; empty: the model's own",
    )  # fmt: skip


def may_fit(size: int, budget: int) -> bool:
    """Whether weights of this size leave a tenth of a node's budget for all else.

    What that takes is known once the header of the file is here.
    """
    return size <= budget * 0.9


def with_headroom(num_bytes: int) -> int:
    """What a disk must have free before a model file may come: a tenth more, or 1 GiB if that is more."""
    return num_bytes + max(num_bytes // 10, 2**30)


class HubFile(Report):
    """One model in a repository, a GGUF file or all parts of a split one; or a projector of models."""

    file: str = Field(description="path in the repository, of the first part")
    size: int = Field(description="bytes, all parts together")
    parts: int = 1
    fits: bool = Field(True, description="its weights leave a tenth of what the node may use")
    is_projector: bool = False
    projector: str = Field("", description="path of the projector that comes along; empty: none")
    projector_size: int = 0

    @property
    def whole_size(self) -> int:
        """Bytes of all that comes."""
        return self.size + self.projector_size


class PullStatus(Report):
    """How far a pull is."""

    state: Literal["running", "done", "failed"] = "running"
    node: str = ""
    file: str = Field("", description="that is coming")
    done: int = Field(0, description="bytes")
    total: int = 0
    projector: str = Field("", description="path of the projector that comes along; empty: none")
    projector_size: int = Field(0, description="bytes of it")
    trouble: str = Field("", description="why it does not go on right now")
    model: str = Field("", description="id that the catalog gives it, once done")
    paths: tuple[str, ...] = Field((), description="where its files are now, for people")
    found: tuple[HubFile, ...] = Field((), description="what there is, when no file was named")
    error: dict[str, Any] | None = Field(None, description="when failed: as of `PacktrainError.to_wire`")


def pull_ttl_ms(status: PullStatus) -> int:
    """How long the record of a pull lives."""
    return RUNNING_TTL_MS if status.state == "running" else ENDED_TTL_MS


def new_pull(repo: str, file: str, revision: str, mmproj: str = "", *, pull_id: str = "") -> PullRequest:
    """A request, with an id of its own if none is given.

    Raises:
        InvalidParameter: A name cannot be.
    """
    try:
        return PullRequest(id=pull_id or secrets.token_hex(16), repo=repo, file=file, revision=revision, mmproj=mmproj)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        raise InvalidParameter(
            f"{field} = {first.get('input')!r} cannot be; name a repository as owner/name and a file as its path there",
            field=field,
        ) from None
