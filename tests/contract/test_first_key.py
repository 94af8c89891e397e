"""An API key whose secret was made before there was a fleet, as set-ups without people need it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from redis import Redis
from typer.testing import CliRunner, Result

from packtrain.broker.api_keys import ApiKeys, digest_of
from packtrain.broker.server import BrokerServer
from packtrain.client.cli.main import app

pytestmark = pytest.mark.contract


def create(broker: BrokerServer, file: Path, *options: str) -> Result:
    words = ["keys", "create", "head", "--admin", "--secret-file", str(file), *options]
    return CliRunner(env={"PACKTRAIN_URL": broker.url}).invoke(app, words)


def test_a_key_takes_the_secret_of_a_file_and_may_be_asked_for_again(
    broker: BrokerServer, redis: Redis, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("0123456789abcdef" * 3 + "\n")

    first = create(broker, file)
    (key,) = ApiKeys(redis).all()
    again = create(broker, file, "--json")

    assert (first.exit_code, first.stdout) == (0, "")
    assert key.digest == digest_of("0123456789abcdef" * 3)
    assert key.is_admin
    assert json.loads(again.stdout)["created_ms"] == key.created_ms  # it is the same still
    assert "0123456789abcdef" not in first.output + again.output

    file.write_text("f" * 48)
    assert create(broker, file).exception is not None  # there is one of this name
    create(broker, file, "--replace")
    assert [key.digest for key in ApiKeys(redis).all()] == [digest_of("f" * 48)]


@pytest.mark.parametrize(
    ("text", "says"), [("short", "5 characters can be guessed"), ("ü" * 40, "header"), ("", "holds nothing")]
)
def test_a_secret_that_is_none_is_refused(
    broker: BrokerServer, redis: Redis, tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "key"
    file.write_text(text)

    assert says in str(create(broker, file).exception)
    assert ApiKeys(redis).all() == []
