"""Another machine joins: by mDNS and a code between two hosts, and what is refused before it comes to that."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from packtrain.broker.errors import SetupError
from packtrain.broker.ids import NodeId
from packtrain.broker.server import BrokerServer, find_server, is_ready
from packtrain.broker.settings import Settings
from packtrain.client.cli.join_commands import join_fleet
from packtrain.client.cli.main import app
from packtrain.client.cli.ports import checked_port
from packtrain.client.cli.up import UpOptions, running_fleet
from tests.support.fleets import eventually
from tests.support.hosts import Host, hosts, why_not

pytestmark = pytest.mark.integration

PACKTRAIN = [sys.executable, "-c", "from packtrain.client.cli.main import main; main()"]


def environment(home: Path, **env: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PACKTRAIN_")}
    return {**inherited, "PACKTRAIN_HOME": str(home), "PACKTRAIN_SCRIPTED": "1", **env}


def run(host: Host, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        host.command(*PACKTRAIN, *arguments),
        env=environment(home), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def open_ports(host: Host) -> set[str]:
    """Ports that listen on more than loopback."""
    sockets = subprocess.run(host.command("ss", "-ltnH"), capture_output=True, text=True, check=True).stdout
    places = [line.split()[3] for line in sockets.splitlines()]
    return {place.rpartition(":")[2] for place in places if not place.startswith(("127.", "[::1]"))}


def home_with(folder: Path, model: str) -> Path:
    (folder / "models").mkdir(parents=True)
    (folder / "models" / f"{model}.scripted.json").write_text("{}")
    return folder


def test_a_machine_finds_the_fleet_on_its_lan_and_joins_by_the_code(tmp_path: Path) -> None:
    at_head, at_other = home_with(tmp_path / "head", "one"), home_with(tmp_path / "other", "two")
    processes: list[subprocess.Popen[bytes]] = []

    def start(host: Host, home: Path, *arguments: str) -> Path:
        log = home / "out.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                host.command(*PACKTRAIN, *arguments),
                env=environment(home), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        processes.append(process)
        return log

    if reason := why_not():
        pytest.skip(reason)
    with hosts("head", "other") as (head, other):
        try:
            up = start(head, at_head, "up", "--listen", "0.0.0.0", "--node", "head", "--drain", "1")
            eventually(lambda: "The fleet is up" in up.read_text(), "the fleet")
            invitation = json.loads(run(head, at_head, "invite", "--json").stdout)

            log = start(other, at_other, "node", "--node", "other", "--code", invitation["code"])
            eventually(lambda: "Taking commands" in log.read_text(), "the node")
            answer = run(other, at_other, "run", "two", "hello", "--json")  # its clients know the fleet, too
            assert json.loads(answer.stdout)["node"] == "other"
            for beat in json.loads(run(head, at_head, "nodes", "--json").stdout):  # files may be fetched both ways
                assert {"head": head, "other": other}[beat["node"]].address in beat["files_url"]
            beats = json.loads(run(head, at_head, "nodes", "--json").stdout)
            files = [str(urlsplit(beat["files_url"]).port) for beat in beats if beat["node"] == "head"]
            # The broker, where machines join, and model files, for which a password, a code and a token are asked.
            assert open_ports(head) == {"6390", "6391", *files}
            joined = at_other / "joined.json"
            assert stat.S_IMODE(joined.stat().st_mode) == 0o600
            assert head.address in json.loads(joined.read_text())["url"]
            secret = json.loads((at_head / "fleet.json").read_text())["url"].split("@")[0].split(":")[-1]
            assert secret not in log.read_text() + up.read_text()
        finally:
            for process in processes:  # what they have started ends with the hosts
                process.kill()
                process.wait(10)


def test_a_fleet_that_listens_lets_others_in_by_a_token(tmp_path: Path) -> None:
    options = UpOptions(
        home=tmp_path / "head", port=0, join_port=0, listen="127.0.0.1", node=NodeId("head"), drain_s=1, quiet=True,
        env={"PACKTRAIN_SCRIPTED": "1"},
    )  # fmt: skip
    other = Settings(home=tmp_path / "other", node="other")
    with running_fleet(options) as fleet:
        invite = CliRunner(env={"PACKTRAIN_HOME": str(options.home)}).invoke(app, ["invite", "--json"])
        token = json.loads(invite.stdout)["token"]

        url = join_fleet(other, token, None, None)
        assert urlsplit(url)[1].rpartition("@")[2] == urlsplit(fleet.url)[1].rpartition("@")[2]
        assert url.startswith("redis://node-other:")

    assert other.broker_url() == url
    with pytest.raises(SetupError, match=r"does not answer.*firewall"):
        join_fleet(other, token, None, None)


def test_a_broker_that_others_reach_needs_a_good_password(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    BrokerServer(tmp_path, 0).prepare()

    with pytest.raises(SetupError, match="has 6 characters, too few"):
        BrokerServer(tmp_path, 0, listen="0.0.0.0").prepare()


def test_a_broker_of_ones_own_that_asks_for_no_password_lets_nobody_join(tmp_path: Path) -> None:
    port = checked_port("127.0.0.1", 0, what="it", option="")
    process = subprocess.Popen(
        [find_server().path, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL
    )
    try:
        url = f"redis://127.0.0.1:{port}/0"
        eventually(lambda: is_ready(url), "the broker")
        options = UpOptions(home=tmp_path, broker_url=url, listen="127.0.0.1", quiet=True)
        with pytest.raises(SetupError, match="asks for no password, so no machine may join"), running_fleet(options):
            pass
    finally:
        process.terminate()
        process.wait(10)


def test_a_gateway_that_others_reach_needs_an_api_key(broker: BrokerServer) -> None:
    done = subprocess.run(
        [*PACKTRAIN, "serve", "--host", "0.0.0.0", "--port", "0"],
        env={**os.environ, "PACKTRAIN_URL": broker.url}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip

    assert done.returncode == 1
    assert "can be reached from other machines, and there is no API key" in done.stderr


@pytest.mark.parametrize(("listen", "says"), [("here", "is no address to listen on"), ("192.0.2.1", "of this machine")])
def test_an_address_that_is_not_ours_is_refused(tmp_path: Path, listen: str, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        BrokerServer(tmp_path, 0, listen=listen).prepare()
