"""Pulls from a hub on loopback, with the real `huggingface_hub` client."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from redis import Redis
from typer.testing import CliRunner

from packtrain.broker.errors import InvalidParameter, ModelFetchFailed, UnknownNode
from packtrain.broker.pulls import PullStatus, new_pull
from packtrain.broker.registry import MemoryRegistry
from packtrain.broker.server import BrokerServer
from packtrain.client.cli.main import app
from packtrain.workers.catalog import load_catalog
from packtrain.workers.catalog_config import CatalogConfig
from packtrain.workers.files import pull as pull_module
from packtrain.workers.files.hub import Hub
from packtrain.workers.files.pull import models_in, pull
from packtrain.workers.files.pulls import MAX_PULLS, Pulls
from tests.support.agents import agents
from tests.support.fleets import eventually
from tests.support.hub_server import REPO, FakeHub, fake_hub
from tests.support.tiny_model import write_tiny_model
from tests.support.tiny_projectors import write_tiny_projector

pytestmark = pytest.mark.integration

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(FakeHub({"tiny.Q4.gguf": CONTENT, "README.md": b"read me"})) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(time, "sleep", lambda _: None)  # the library waits between its tries
        yield running


def bring(
    folder: Path, file: str, revision: str = "main", repo: str = REPO, mmproj: str = ""
) -> tuple[PullStatus, list[PullStatus]]:
    seen: list[PullStatus] = []
    end = pull(new_pull(repo, file, revision, mmproj), Hub(), folder / "models", folder / "hashes.json", seen.append)
    return end, seen


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "models").iterdir())


def test_a_file_comes_into_the_models_folder_and_names_its_model(hub: FakeHub, tmp_path: Path) -> None:
    end, seen = bring(tmp_path, "tiny.Q4.gguf")

    assert (end.state, end.model, end.total) == ("done", "tiny.q4", len(CONTENT))
    assert (tmp_path / "models" / "tiny.Q4.gguf").read_bytes() == CONTENT
    assert names(tmp_path) == ["tiny.Q4.gguf"]
    assert seen[0].done == 0
    assert seen[-1].done == seen[-1].total == len(CONTENT)


def test_all_parts_of_a_split_model_come_whichever_is_named(hub: FakeHub, tmp_path: Path) -> None:
    hub.files |= {f"Q8/big-0000{n}-of-00003.gguf": bytes([n]) * 1000 for n in (1, 2, 3)}

    end, _ = bring(tmp_path, "Q8/big-00002-of-00003.gguf")

    assert names(tmp_path) == [f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert (end.model, end.total) == ("big", 3000)


def test_a_projector_comes_along_and_the_catalog_gives_it_to_the_model(hub: FakeHub, tmp_path: Path) -> None:
    eyes = {
        kind: write_tiny_projector(tmp_path / f"{kind}.gguf", "mlp", seed=n) for n, kind in enumerate(("F16", "F32"))
    }
    hub.files |= {f"mmproj-{kind}.gguf": path.read_bytes() for kind, path in eyes.items()}
    hub.files["tiny-Q8_0.gguf"] = write_tiny_model(tmp_path / "tiny.gguf").read_bytes()
    hub.files["other-Q8_0.gguf"] = write_tiny_model(tmp_path / "other.gguf").read_bytes()

    end, seen = bring(tmp_path, "tiny-Q8_0.gguf")
    bring(tmp_path, "other-Q8_0.gguf", mmproj="none")
    offered = load_catalog([tmp_path / "models"], CatalogConfig(), 2**34).models

    sizes = len(hub.files["tiny-Q8_0.gguf"]), len(hub.files["mmproj-F16.gguf"])
    assert names(tmp_path) == ["other-Q8_0.gguf", "tiny-Q8_0.gguf", "tiny-mmproj-f16.gguf"]
    assert (tmp_path / "models" / "tiny-mmproj-f16.gguf").read_bytes() == hub.files["mmproj-F16.gguf"]
    assert (end.total, end.projector, end.projector_size) == (sum(sizes), "mmproj-F16.gguf", sizes[1])
    assert {(status.total, status.projector) for status in seen} == {(sum(sizes), "mmproj-F16.gguf")}
    assert {model: entry.info.projector for model, entry in offered.items()} == {
        "tiny-q8_0": "tiny-mmproj-f16.gguf", "other-q8_0": "",
    }  # fmt: skip


def test_projectors_of_two_repositories_with_one_name_lie_beside_each_other(hub: FakeHub, tmp_path: Path) -> None:
    hub.files |= {"tiny-Q8.gguf": CONTENT, "mmproj-F16.gguf": b"one"}
    bring(tmp_path, "tiny-Q8.gguf")
    bring(tmp_path, "tiny.Q4.gguf")  # the same one again
    hub.files["mmproj-F16.gguf"] = b"another"

    end, _ = bring(tmp_path, "tiny.Q4.gguf")

    found = {path.name: path.read_bytes() for path in (tmp_path / "models").glob("*mmproj*")}
    assert found == {"tiny-mmproj-f16.gguf": b"one", "tiny.Q4-mmproj-f16.gguf": b"another"}
    assert end.paths[-1].endswith("tiny.Q4-mmproj-f16.gguf")


def test_a_projector_that_is_not_there_is_said_before_anything_comes(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["mmproj-F16.gguf"] = b"eyes"

    with pytest.raises(ModelFetchFailed, match=r"no projector 'q8_0' for 'tiny\.Q4\.gguf': it has mmproj-F16\.gguf"):
        bring(tmp_path, "tiny.Q4.gguf", mmproj="q8_0")

    assert hub.starts == []


def test_a_pull_that_was_cut_off_goes_on_the_next_time(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_at = 100_000
    with pytest.raises(ModelFetchFailed, match="what came is kept"):
        bring(tmp_path, "tiny.Q4.gguf")
    came = sum(path.stat().st_size for path in (tmp_path / "models").iterdir())
    hub.cut_at, hub.starts = 0, []

    bring(tmp_path, "tiny.Q4.gguf")

    assert came == 100_000
    assert hub.starts == [came]
    assert (tmp_path / "models" / "tiny.Q4.gguf").read_bytes() == CONTENT


def test_a_hub_without_ranges_sends_it_anew(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_at = 100_000
    with pytest.raises(ModelFetchFailed):
        bring(tmp_path, "tiny.Q4.gguf")
    hub.cut_at, hub.knows_ranges = 0, False

    bring(tmp_path, "tiny.Q4.gguf")

    assert (tmp_path / "models" / "tiny.Q4.gguf").read_bytes() == CONTENT


def test_bytes_that_are_not_what_the_hub_said_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.flips = True

    with pytest.raises(ModelFetchFailed, match="has the hash"):
        bring(tmp_path, "tiny.Q4.gguf")

    assert names(tmp_path) == []


def test_what_is_there_already_does_not_come_again(hub: FakeHub, tmp_path: Path) -> None:
    bring(tmp_path, "tiny.Q4.gguf")
    hub.starts.clear()

    end, _ = bring(tmp_path, "tiny.Q4.gguf")

    assert (end.state, hub.starts) == ("done", [])
    (tmp_path / "models" / "tiny.Q4.gguf").write_bytes(b"mine")
    with pytest.raises(ModelFetchFailed, match="is another file"):
        bring(tmp_path, "tiny.Q4.gguf")


@pytest.mark.parametrize(
    ("file", "revision", "repo", "said"),
    [
        ("tiny.Q8.gguf", "main", REPO, r"it has .*tiny\.Q4\.gguf"),
        ("README.md", "main", REPO, "it is no GGUF file"),
        ("lone-00001-of-00002.gguf", "main", REPO, "parts of it are missing"),
        ("tiny.Q4.gguf", "v9", REPO, "has no revision 'v9'"),
        ("tiny.Q4.gguf", "main", "pack/other", "has no model 'pack/other', or it is private"),
    ],
)
def test_what_is_not_there_is_said(
    hub: FakeHub, tmp_path: Path, file: str, revision: str, repo: str, said: str
) -> None:
    hub.files["lone-00001-of-00002.gguf"] = b"x"

    with pytest.raises(ModelFetchFailed, match=said):
        bring(tmp_path, file, revision, repo)


def test_what_is_gated_comes_with_a_token_only(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated, hub.token = True, "hf_right"
    with pytest.raises(ModelFetchFailed, match="accept its terms"):
        bring(tmp_path, "tiny.Q4.gguf")
    monkeypatch.setenv("HF_TOKEN", "hf_right")

    assert bring(tmp_path, "tiny.Q4.gguf")[0].state == "done"


def test_a_hub_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")

    with pytest.raises(ModelFetchFailed, match=r"127\.0\.0\.1:9 cannot be reached"):
        bring(tmp_path, "tiny.Q4.gguf")


def test_a_disk_without_room_is_left_alone(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_module, "disk_free", lambda folder: 2**20)

    with pytest.raises(ModelFetchFailed, match="make room"):
        bring(tmp_path, "tiny.Q4.gguf")

    assert (hub.starts, names(tmp_path)) == ([], [])


def test_a_listing_has_each_model_once_and_says_what_fits(hub: FakeHub) -> None:
    hub.files |= {f"Q8/big-0000{n}-of-00002.gguf": bytes(2_000_000) for n in (1, 2)}

    found = models_in(Hub().look(REPO, "main"), budget=2_000_000)

    assert [(f.file, f.size, f.parts, f.fits) for f in found] == [
        ("tiny.Q4.gguf", len(CONTENT), 1, True),
        ("Q8/big-00001-of-00002.gguf", 4_000_000, 2, False),
    ]
    hub.files["mmproj-F32.gguf"] = bytes(800_000)
    small, _, eyes = models_in(Hub().look(REPO, "main"), budget=2_000_000)
    assert (small.file, small.projector, small.projector_size, small.fits) == (
        "tiny.Q4.gguf", "mmproj-F32.gguf", 800_000, False,
    )  # fmt: skip
    assert (eyes.file, eyes.is_projector, eyes.projector) == ("mmproj-F32.gguf", True, "")


@pytest.mark.parametrize("repo", ["", "/", "one", "a/b/c", "../b", "a/..", "a b/c", "-a/b"])
def test_a_repository_needs_an_owner_and_a_name(repo: str) -> None:
    with pytest.raises(InvalidParameter, match="owner/name"):
        new_pull(repo, "x.gguf", "main")


def following(*lines: str, then: str = "") -> tuple[Pulls, MemoryRegistry]:
    """A node whose pulls say these lines, whatever they are asked for."""
    said = "".join(f"print({line!r}, flush=True)\n" for line in lines)
    registry = MemoryRegistry(lambda: int(time.time() * 1000))
    return Pulls("n1", registry.put_pull, (sys.executable, "-c", said + then)), registry


def test_what_the_process_of_a_pull_says_is_passed_on_until_its_end() -> None:
    request = new_pull(REPO, "a.gguf", "main")
    half = PullStatus(file="a.gguf", done=1, total=2).model_dump_json()
    pulls, registry = following(half, "no JSON", then="input()")  # stdin is empty: it ends without a last word
    pulls.start(request)

    end = eventually(lambda: _ended(registry, request.id), "the end of the pull")

    assert (end.node, end.state) == ("n1", "failed")
    assert "ended with code 1; pull again" in str(end.error)


def test_a_node_pulls_some_at_once_and_says_so_to_the_next() -> None:
    requests = [new_pull(REPO, "a.gguf", "main") for _ in range(MAX_PULLS + 1)]
    pulls, registry = following(PullStatus(file="a.gguf").model_dump_json(), then="import time; time.sleep(60)")
    for request in requests:
        pulls.start(request)
        pulls.start(request)  # said twice
    eventually(lambda: all(registry.pull(request.id) for request in requests), "all to be told of")

    assert [_ended(registry, request.id) is None for request in requests] == [True] * MAX_PULLS + [False]
    pulls.close()
    eventually(lambda: all(_ended(registry, request.id) for request in requests), "all to end")


def _ended(registry: MemoryRegistry, pull_id: str) -> PullStatus | None:
    status = registry.pull(pull_id)
    return status if status and status.state != "running" else None


def test_the_command_pulls_here_and_to_a_node_where_the_model_is_offered_at_once(
    broker: BrokerServer, redis: Redis, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files["tiny.gguf"] = write_tiny_model(tmp_path / "tiny.gguf").read_bytes()
    hub.files["mmproj-F16.gguf"] = write_tiny_projector(tmp_path / "eyes.gguf", "mlp").read_bytes()
    for name, value in {"HF_ENDPOINT": hub.url, "PACKTRAIN_URL": broker.url, "PACKTRAIN_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)

    def packtrain(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["pull", *arguments])
        if result.exception:
            raise result.exception
        return result.stdout

    with agents(broker.url, tmp_path) as fleet:
        fleet.start("n1")
        here = packtrain(f"{REPO}/tiny.gguf", "--json")
        there = packtrain(f"{REPO}/tiny.gguf", "--node", "n1", "--mmproj", "f16")
        listing = packtrain(REPO, "--node", "n1", "--json")
        with pytest.raises(ModelFetchFailed, match="it has no such file"):
            packtrain(f"{REPO}/other.gguf", "--node", "n1")
        with pytest.raises(UnknownNode, match="no node 'n9' is up; those that are: n1"):
            packtrain(f"{REPO}/tiny.gguf", "--node", "n9")
        eventually(lambda: fleet.beat("n1").models == ("tiny",), "the model to be offered")

    assert json.loads(here)["model"] == "tiny"
    assert (tmp_path / "models" / "tiny.gguf").read_bytes() == hub.files["tiny.gguf"]
    assert "are there on n1, projector and all; `packtrain run tiny" in there
    assert [(row["file"], row["fits"], row["is_projector"]) for row in json.loads(listing)] == [
        ("tiny.gguf", True, False), ("tiny.Q4.gguf", True, False), ("mmproj-F16.gguf", True, True),
    ]  # fmt: skip
