"""Links between nodes: measured by agents, told in their beats, and what a split is planned by."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from packtrain.broker.beats import NodeBeat
from packtrain.broker.placement.split_fleet import SplitFit
from packtrain.client.cli.main import app
from packtrain.workers.files.links import Unmeasured, measure
from packtrain.workers.files.secret import FleetSecret
from packtrain.workers.files.server import LINK_BYTES, FileServer
from tests.support.fleets import eventually, fleet
from tests.support.nodes import scripted_node
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.integration


def clock_ms() -> int:
    """The broker's clock, which is ours here."""
    return int(time.time() * 1000)


def test_only_who_knows_the_fleets_secret_measures_a_link(tmp_path: Path) -> None:
    server = FileServer(
        "127.0.0.1", 0, node="n1", parts=lambda _: None, secret=FleetSecret(lambda: "s"), clock_s=time.time,
        hashes=tmp_path / "hashes.json",
    )  # fmt: skip
    server.start()
    try:
        node = NodeBeat(node="n1", files_url=f"http://127.0.0.1:{server.port}")
        link = measure(node, FleetSecret(lambda: "s"), clock_ms)
        with pytest.raises(Unmeasured, match="it answers 403"):
            measure(node, FleetSecret(lambda: "another"), clock_ms)
    finally:
        server.close()
    with pytest.raises(Unmeasured, match="it does not answer"):
        measure(node, FleetSecret(lambda: "s"), clock_ms)

    assert link.bytes_per_s > LINK_BYTES / 10
    assert 0 < link.round_trip_s < 1


def test_nodes_that_take_part_in_splits_measure_each_other_and_a_plan_says_who_would_hold_what(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    write_tiny_model(models / "tiny.gguf", n_layer=6)
    with fleet(tmp_path / "head", models, PACKTRAIN_SPLIT="1", PACKTRAIN_MEMORY="1000000000") as running:

        def plan() -> SplitFit:
            command = ["plan", "--model", "tiny", "--json"]
            told = CliRunner().invoke(app, command, env={"PACKTRAIN_URL": running.url}, catch_exceptions=False)
            return SplitFit.model_validate_json(told.stdout)

        eventually(lambda: "tiny" in {model.id for model in running.client.models()}, "the model")
        assert "there is one" in plan().missing[0]
        with scripted_node(running.url, tmp_path / "n2", "n2", {}, PACKTRAIN_SPLIT="1", PACKTRAIN_MEMORY="900000000"):

            def linked() -> bool:
                nodes = {node.node: node for node in running.client.nodes()}
                return len(nodes) == 2 and "n2" in nodes["n1"].links and "n1" in nodes["n2"].links

            eventually(linked, "links of both nodes")
            found = plan()
        assert set(found.fits_on) == {"n1"}

    assert [(share.node, share.is_head) for share in found.shares] == [("n1", True), ("n2", False)]
    assert sum(share.layers for share in found.shares) == 6
    assert found.shares[1].bytes_per_s
    assert found.unmeasured == ("n1", "n2")
    assert found.tokens_per_s is None
