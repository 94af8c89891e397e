"""Secrets that come as files, as containers and services get them."""

from __future__ import annotations

from pathlib import Path

import pytest

from packtrain.broker.errors import SetupError
from packtrain.broker.settings import load_settings, with_password
from packtrain.client.cli.fleet_commands import _join_of_file

pytestmark = pytest.mark.unit


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("s3 cret/\n")
    return file


def test_a_password_file_completes_the_url(secret: Path) -> None:
    settings = load_settings(url="redis://node@head:6390/0", password_file=secret)

    assert settings.broker_url() == "redis://node:s3%20cret%2F@head:6390/0"


@pytest.mark.parametrize("url", ["", "redis://:own@head/0", "http://head:8080", "redis://[broken"])
def test_other_urls_stay_as_they_are(url: str) -> None:
    assert with_password(url, "other") == url


def test_url_and_key_may_be_files_and_what_is_set_counts_more(tmp_path: Path, secret: Path) -> None:
    url = tmp_path / "url"
    url.write_text("redis://head:6390/0\n")

    assert load_settings(url_file=url, password_file=secret).url == "redis://:s3%20cret%2F@head:6390/0"
    assert load_settings(url="redis://set/0", url_file=url).url == "redis://set/0"
    assert load_settings(api_key_file=secret).api_key == "s3 cret/"
    assert load_settings(api_key="set", api_key_file=secret).api_key == "set"


def test_variables_name_the_files(monkeypatch: pytest.MonkeyPatch, secret: Path) -> None:
    monkeypatch.setenv("PACKTRAIN_URL", "redis://head/0")
    monkeypatch.setenv("PACKTRAIN_PASSWORD_FILE", str(secret))

    assert load_settings().url == "redis://:s3%20cret%2F@head/0"


@pytest.mark.parametrize(("text", "says"), [(None, "cannot be read"), ("\n", "holds nothing")])
def test_a_file_without_a_secret_stops_the_process_and_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "missing"
    if text is not None:
        file.write_text(text)

    with pytest.raises(SetupError, match=f"PACKTRAIN_PASSWORD_FILE.*missing.*{says}"):
        load_settings(url="redis://head/0", password_file=file)


def test_a_token_in_a_file_is_needed_once_and_a_url_always(tmp_path: Path) -> None:
    file = tmp_path / "join"
    new = load_settings(home=tmp_path / "home", join_file=file)
    with pytest.raises(SetupError, match=r"no fleet is known.*cannot be read.*packtrain invite"):
        _join_of_file(new)

    file.write_text("pt1-abc\n")
    assert _join_of_file(new) == "pt1-abc"
    new.home.mkdir()
    new.joined_file.write_text('{"url": "redis://head/0"}')
    assert _join_of_file(new) is None
    file.write_text("redis://:new@head/0")
    assert _join_of_file(new) == "redis://:new@head/0"
    file.unlink()
    assert _join_of_file(new) is None
    assert _join_of_file(load_settings(home=tmp_path)) is None
