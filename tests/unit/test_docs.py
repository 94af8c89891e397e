"""README, docs/ and what the site makes of them: what they say exists. tests/e2e/test_docs.py runs what they show."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from docs.site import commands, http, settings
from docs.site.build import fetched_elsewhere
from docs.site.staging import places, turned
from packtrain.client.cli.main import app
from packtrain.workers.catalog_config import CatalogConfig
from tests.conftest import ROOT
from tests.support.doc_blocks import EXCUSED, PAGES, begins, blocks, calls_of, inline_commands

pytestmark = pytest.mark.unit

COMMANDS: Any = typer.main.get_command(app)
SHELL = [(str(block), command) for block in blocks("sh", "console") for command in block.commands]
SHOWN = SHELL + inline_commands("packtrain") + inline_commands("make")
_DEPLOY = [ROOT / "docker-compose.yml", *(ROOT / "deploy").glob("compose.*.yml"), *(ROOT / "deploy/systemd").iterdir()]
_OF_DEPLOY = {name for file in _DEPLOY for name in re.findall(r"PACKTRAIN_[A-Z_]+", file.read_text())}
#: Variables of tests, benchmarks, set-up scripts, what deploys, and between our own processes.
OTHER_VARIABLES = {"PACKTRAIN_CACHE", *_OF_DEPLOY}


def faults_of(arguments: list[str]) -> list[str]:
    """What a call of `packtrain` asks for that there is not."""
    command = COMMANDS
    path = "packtrain"
    words = iter(arguments)
    options: dict[str, Any] = {}
    for word in words:
        if hasattr(command, "commands") and not word.startswith("-"):
            if word not in command.commands:
                return [] if word.isupper() or word == "..." else [f"{path} has no command {word}"]
            command, path = command.commands[word], f"{path} {word}"
            options = {name: p for p in command.params for name in (*p.opts, *p.secondary_opts) if name.startswith("-")}
        elif word.startswith("-") and word != "-":
            name = word.split("=")[0]
            known = {**options, "--help": None, "-h": None}
            if name not in known:
                return [f"{path} has no option {name}"]
            if known[name] is not None and not known[name].is_flag and "=" not in word:
                next(words, None)
    return []


@pytest.mark.parametrize(("place", "command"), SHOWN)
def test_a_command_has_the_options_that_it_is_shown_with(place: str, command: str) -> None:
    assert [fault for call in calls_of(command, "packtrain") for fault in faults_of(call)] == []


def test_what_is_made_by_make_has_a_target() -> None:
    targets = set(re.findall(r"^([a-z0-9_-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {call[0] for _, command in SHOWN for call in calls_of(command, "make") if call}

    assert asked - {"NAME=value"} - targets == set()


def test_every_variable_that_is_named_is_a_setting() -> None:
    known = {*settings.variables(), *OTHER_VARIABLES}
    named = {name for page in PAGES for name in re.findall(r"\bPACKTRAIN_[A-Z][A-Z_]*[A-Z]\b", page.read_text())}

    assert named - known == set()


@pytest.mark.parametrize("page", ["models.md", "remote.md", "vision.md"])
def test_packtrain_toml_as_shown_is_taken(page: str) -> None:
    shown = re.findall(r"^```toml\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)

    assert shown
    for text in shown:
        CatalogConfig.model_validate(tomllib.loads(text))


def test_no_excuse_is_left_over() -> None:
    shown = [command for _, command in SHELL] + [block.code for block in blocks("python")]

    assert {begin for begin in EXCUSED if not any(begins(text, begin) for text in shown)} == set()


# --- what the site makes of them ----------------------------------------------------------------------------------


def test_links_lead_where_the_site_has_their_target() -> None:
    known = {"README.md": "index.md", "docs/a.md": "a.md", "docs/images/p.png": "images/p.png"}
    text = "[a](docs/a.md#x) ![p](docs/images/p.png) [code](broker/a.py) [b](docs/b.md) [out](https://a.b/c)"

    found = turned(text, "README.md", known, frozenset({"broker/a.py"}))

    assert found == "[a](a.md#x) ![p](images/p.png) code [b](docs/b.md) [out](https://a.b/c)"
    assert turned("[home](../README.md#why)", "docs/a.md", known) == "[home](index.md#why)"


def test_sections_of_the_reference_are_pages_of_their_own() -> None:
    known = places(ROOT)

    assert turned("[s](reference.md#settings)", "docs/models.md", known) == "[s](reference/settings.md)"


def test_the_reference_has_every_command_setting_and_route() -> None:
    assert "## packtrain up\n" in (page := commands.page())
    assert "### packtrain nodes drain\n" in page
    assert "`PACKTRAIN_LEASE_MS`" in (page := settings.page())
    assert "`PACKTRAIN_HTTP_PORT`" in page
    assert "`spill_after_s`" in page
    assert "`POST /v1/chat/completions`" in (page := http.page())
    assert "`DELETE /v1/files/{file_id}`" in page


def test_every_body_that_a_route_names_is_described() -> None:
    whole = http.schema()
    refs = set(re.findall(r"'#/components/schemas/([^']+)'", str(whole)))

    assert refs - whole["components"]["schemas"].keys() == set()


def test_a_page_that_would_load_from_another_host_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<script async src="https://cdn.example/x.js"></script> <link href="//fonts.example/f" rel="stylesheet">'
        '<a href="https://example.com">read</a> <img src="images/p.png"> <link rel="canonical" href="https://us.example/">'
    )

    assert fetched_elsewhere(tmp_path) == ["//fonts.example/f", "https://cdn.example/x.js"]


# --- messages -----------------------------------------------------------------------------------------------------


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    page = (ROOT / "docs/operations.md").read_text().partition("## Troubleshooting")[2]
    shown = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    said = [
        text
        for root in ("broker", "client", "workers")
        for file in (ROOT / root).rglob("*.py")
        for text in texts_of(file)
    ]

    assert len(shown) > 15
    unknown = [
        text for text in shown if not any(all(part.strip() in whole for part in text.split("…")) for whole in said)
    ]
    assert unknown == []


def texts_of(file: Path) -> Iterator[str]:
    """Texts in a module, with … for what is filled in."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
