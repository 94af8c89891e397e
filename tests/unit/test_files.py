"""What decides about model files on their way: tokens, limits, ranges, progress, names and addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.errors import SetupError
from packtrain.broker.settings import Settings, load_settings
from packtrain.workers.files.addresses import files_url, loopback_id
from packtrain.workers.files.bucket import TokenBucket
from packtrain.workers.files.progress import Progress
from packtrain.workers.files.ranges import RangeUnsatisfiable, byte_range
from packtrain.workers.files.tokens import LIFETIME_S, refusal, sign
from tests.support.factories import MIB, node_beat

pytestmark = pytest.mark.unit

PATH = "/models/tiny/0"


def test_a_token_opens_its_path_on_its_node_until_it_is_over() -> None:
    token = sign("secret", "n1", PATH, 1000)

    assert refusal("secret", "n1", PATH, token, 1000 + LIFETIME_S) == ""
    assert "over" in refusal("secret", "n1", PATH, token, 1001 + LIFETIME_S)
    assert refusal("other", "n1", PATH, token, 1000)
    assert refusal("secret", "n2", PATH, token, 1000)
    assert refusal("secret", "n1", "/models/tiny/1", token, 1000)
    assert "secret" not in token


@pytest.mark.parametrize("moved", [-1, 1, 10_000])
def test_a_token_whose_end_was_moved_opens_nothing(moved: int) -> None:
    scheme, _, token = sign("secret", "n1", PATH, 1000).partition(" ")
    until, _, digest = token.partition(".")

    assert refusal("secret", "n1", PATH, f"{scheme} {int(until) + moved}.{digest}", 1000)


@pytest.mark.parametrize(
    "header", ["", "Packtrain", "Packtrain ", "Packtrain 1", "Packtrain ١.a", "Basic eDp5", "x" * 9999]
)
def test_what_is_no_token_opens_nothing(header: str) -> None:
    assert refusal("secret", "n1", PATH, header, 1000)


@given(st.floats(1, 1e9), st.floats(0, 1e9), st.lists(st.tuples(st.floats(0, 100), st.integers(1, 10**7)), min_size=1))
def test_a_bucket_never_lets_out_more_than_its_burst_and_rate(
    rate: float, burst: float, sends: list[tuple[float, int]]
) -> None:
    bucket = TokenBucket(rate, burst, at=0)
    now, sent = 0.0, 0
    for pause, size in sends:
        now += pause
        now += bucket.book(size, now)
        sent += size
        assert sent <= burst + rate * now + 1e-6 * (sent + 1)


@given(st.integers(1, 1000), st.integers(0, 1100), st.integers(0, 1100))
def test_a_range_is_what_a_slice_would_give(size: int, first: int, last: int) -> None:
    content = list(range(size))

    if first >= size and first <= last:
        with pytest.raises(RangeUnsatisfiable):
            byte_range(f"bytes={first}-{last}", size)
    elif first <= last:
        assert list(byte_range(f"bytes={first}-{last}", size) or ()) == content[first : last + 1]
    else:
        assert byte_range(f"bytes={first}-{last}", size) is None
    assert list(byte_range(f"bytes=-{last + 1}", size) or ()) == content[-last - 1 :]


@pytest.mark.parametrize(
    "header", [None, "", "bytes=", "bytes=-", "bytes=a-b", "bytes=0-1,3-4", "lines=0-1", "bytes=٠-"]
)
def test_a_range_that_is_not_understood_means_all(header: str | None) -> None:
    assert byte_range(header, 10) is None


def test_the_rate_is_that_of_the_last_seconds() -> None:
    progress = Progress(at=0)
    for second in range(31):  # 20 MiB in the first 10 s, then 1 MiB/s
        progress.note(min(second, 10) * 2 * MIB + max(0, second - 10) * MIB, 100 * MIB, signs=second, now=second)

    assert progress.rate == pytest.approx(MIB)


def test_what_was_there_before_counts_as_done_but_not_into_the_rate() -> None:
    progress = Progress(at=0)
    progress.note(0, 0, signs=0, now=1)
    progress.note(90 * MIB, 100 * MIB, signs=90, now=2)
    progress.note(91 * MIB, 100 * MIB, signs=91, now=3)

    assert progress.said("n1", "") == "fetching 91 % of 100 MiB from n1, 1.0 MiB/s"


def test_a_source_is_silent_since_its_last_sign_of_life() -> None:
    progress = Progress(at=0)
    progress.note(0, 0, signs=1, now=5)  # it hashes its file: no byte has come
    progress.note(0, 0, signs=1, now=7)

    assert progress.silent_s(now=9) == 4
    progress.forgive(3)
    assert progress.silent_s(now=9) == 1
    assert progress.said("n1", "n1 is hashing its file") == "fetching its file from n1, n1 is hashing its file"


def test_files_on_loopback_are_for_nodes_of_the_same_machine() -> None:
    local = node_beat(files_url="http://127.0.0.1:5", loopback="here")

    assert local.serves_files_to("here")
    assert not local.serves_files_to("there")
    assert not node_beat(files_url="http://127.0.0.1:5").serves_files_to("")
    assert node_beat(files_url="http://10.0.0.1:5", loopback="here").serves_files_to("there")
    assert not node_beat().serves_files_to("here")
    assert loopback_id() == loopback_id() != ""


@pytest.mark.parametrize("address", ["6391", "n1", "n1:", "n1:99999", "a b:1", "http://n1:1", "[::1:5", "x@n1:1", ":5"])
def test_an_address_that_is_none_names_its_variable(address: str) -> None:
    with pytest.raises(SetupError, match="PACKTRAIN_FILES_ADDRESS"):
        load_settings(files_address=address)


def test_an_address_may_be_empty_or_of_either_kind() -> None:
    assert Settings(files_address="").files_address == ""
    assert files_url("::1", 5, "redis://n1") == "http://[::1]:5"
    assert files_url("10.0.0.1", 5, "redis://n1") == "http://10.0.0.1:5"
