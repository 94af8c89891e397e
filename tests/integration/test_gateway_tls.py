"""A gateway with a certificate of its own speaks HTTPS, and nothing else; clients pin who has signed it."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from packtrain.broker.certificates import broker_files
from packtrain.broker.errors import PacktrainError, SetupError
from packtrain.broker.server import BrokerServer
from packtrain.client import Packtrain
from packtrain.client.cli.gateway_page import GatewayPage
from packtrain.client.gateway.settings import check_tls, load_gateway_settings
from tests.conftest import ROOT
from tests.support.gateways import Gateway, gateway

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("certs")
    subprocess.run([ROOT / "deploy" / "tls" / "make-ca.sh", made, "gate", "127.0.0.1"], check=True)
    return made


@pytest.fixture(scope="module")
def http(broker: BrokerServer, folder: Path) -> Iterator[Gateway]:
    certificate = {
        "PACKTRAIN_HTTP_TLS_CERT": str(folder / "gate.pem"),
        "PACKTRAIN_HTTP_TLS_KEY": str(folder / "gate.key"),
    }
    with gateway(broker.url, folder, **certificate) as running:
        yield running


def test_clients_that_pin_its_authority_are_served(
    http: Gateway, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert http.url.startswith("https://")
    trusted = ssl.create_default_context(cafile=folder / "ca.pem")
    assert httpx2.get(f"{http.url}/v1/models", verify=trusted, trust_env=False).status_code == 200
    assert GatewayPage("127.0.0.1", int(http.url.rsplit(":", 1)[1]), is_tls=True).answers()
    monkeypatch.setenv("PACKTRAIN_CA", str(folder / "ca.pem"))
    with Packtrain(http.url) as fleet:
        assert fleet.nodes() == []


def test_others_are_not_fooled(http: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx2.get(f"{http.url}/v1/models", trust_env=False)
    monkeypatch.setenv("PACKTRAIN_CA", str(broker_files(tmp_path / "other", ["127.0.0.1"]).ca))
    with Packtrain(http.url) as fleet, pytest.raises(PacktrainError, match=r"(?i)certificate"):
        fleet.nodes()
    with pytest.raises(httpx2.HTTPError):
        httpx2.get(http.url.replace("https://", "http://"), trust_env=False)


def test_what_is_wrong_with_its_files_is_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.key").write_bytes((folder / "ca.key").read_bytes())
    with pytest.raises(SetupError, match=r"cannot serve HTTPS.*make-ca\.sh"):
        check_tls(load_gateway_settings(tls_cert=folder / "gate.pem", tls_key=tmp_path / "other.key"))
    with pytest.raises(SetupError, match="cannot serve HTTPS"):
        check_tls(load_gateway_settings(tls_cert=tmp_path / "none.pem", tls_key=tmp_path / "none.key"))
    with pytest.raises(SetupError, match="a certificate needs its key"):
        check_tls(load_gateway_settings(tls_cert=folder / "gate.pem"))
