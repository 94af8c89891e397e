"""The text of the scripts that the server runs."""

from __future__ import annotations

import re

import pytest

from packtrain.broker import keys
from packtrain.broker.scripts import source

pytestmark = pytest.mark.unit


def test_a_script_has_the_shared_functions_that_it_calls_each_once_and_no_others() -> None:
    assert re.findall(r"(?m)^local function (\w+)", source("renew")) == ["now_ms", "is_owner"]
    assert re.findall(r"(?m)^local function (\w+)", source("release")) == [
        "now_ms", "is_owner", "ready_key", "place_of", "queued_key", "count_in", "note_movable", "unlease", "requeue",
        "tally_key", "note", "count_end", "conclude", "settle",
    ]  # fmt: skip


def test_key_names_stand_in_a_script_as_literals() -> None:
    text = source("renew")

    assert f"'{keys.JOB_PREFIX}' .. ARGV[i]" in text
    assert "JOB_PREFIX" not in text
