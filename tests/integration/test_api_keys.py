"""API keys in a real broker: what is kept of them, and how what they use is counted."""

from __future__ import annotations

import pytest
from redis import Redis

from packtrain.broker import keys
from packtrain.broker.api_keys import PREFIX, ApiKey, ApiKeys, Charge, Short, digest_of
from packtrain.broker.errors import InvalidParameter

pytestmark = pytest.mark.integration


@pytest.fixture
def api_keys(redis: Redis) -> ApiKeys:
    return ApiKeys(redis)


def charge(found: Charge | Short) -> Charge:
    assert isinstance(found, Charge)
    return found


def short(found: Charge | Short) -> Short:
    assert isinstance(found, Short)
    return found


def server_second(redis: Redis) -> int:
    return int(redis.time()[0])


def test_of_a_secret_only_its_hash_is_kept(redis: Redis, api_keys: ApiKeys) -> None:
    key, secret = api_keys.create("anna", models=["a", "b"], concurrent=2, tokens_per_minute=100, is_admin=True)

    assert secret.startswith(PREFIX)
    assert len(secret) >= 46  # 256 bits
    assert api_keys.all() == [key]
    assert key.digest == digest_of(secret)
    assert secret[len(PREFIX) :] not in str(redis.hgetall(keys.API_KEYS))


def test_a_name_has_one_key_and_a_replaced_one_ends(api_keys: ApiKeys) -> None:
    first, _ = api_keys.create("anna")

    with pytest.raises(InvalidParameter, match="--replace"):
        api_keys.create("anna")

    second, _ = api_keys.create("anna", replace=True)

    assert first.id == second.id  # what belongs to it stays its own
    assert first.digest != second.digest
    assert api_keys.all() == [second]


@pytest.mark.parametrize("name", ["", "Anna", "a b", "../a", "a\n", "x" * 81])
def test_a_name_that_cannot_be_a_user_is_refused(api_keys: ApiKeys, name: str) -> None:
    with pytest.raises(InvalidParameter, match="is no name"):
        api_keys.create(name)


def test_a_revoked_key_is_gone_and_revoking_it_again_says_so(api_keys: ApiKeys) -> None:
    api_keys.create("anna")

    assert api_keys.revoke("anna")
    assert not api_keys.revoke("anna")
    assert api_keys.all() == []


def test_a_key_of_another_version_is_shown_and_fits_no_secret(redis: Redis, api_keys: ApiKeys) -> None:
    redis.hset(keys.API_KEYS, "odd", '{"shape": "new"}')

    assert api_keys.all() == [ApiKey(name="odd", digest="")]


def test_requests_at_once_are_counted_until_they_end(api_keys: ApiKeys) -> None:
    key, _ = api_keys.create("anna", concurrent=2)
    first = charge(api_keys.admit(key, "r1", 10))
    charge(api_keys.admit(key, "r2", 10))

    assert short(api_keys.admit(key, "r3", 10)) == Short("concurrent", 2, 0)

    assert api_keys.account(key, first, 7)

    charge(api_keys.admit(key, "r3", 10))
    assert not api_keys.account(key, first, 7)  # a reply that was lost, and so sent twice, changes nothing


def test_a_request_whose_gateway_died_counts_no_more_once_its_lease_has_lapsed(redis: Redis, api_keys: ApiKeys) -> None:
    key, _ = api_keys.create("anna", concurrent=1)
    charge(api_keys.admit(key, "r1", 0))
    redis.zadd(keys.api_busy(key.id), {"r1": server_second(redis) * 1000 - 1})  # as 30 s later

    charge(api_keys.admit(key, "r2", 0))


def test_a_request_that_is_kept_counts_on(redis: Redis, api_keys: ApiKeys) -> None:
    key, _ = api_keys.create("anna", concurrent=1)
    charge(api_keys.admit(key, "r1", 0))
    redis.zadd(keys.api_busy(key.id), {"r1": server_second(redis) * 1000 + 100})

    api_keys.keep([(key, "r1"), (key, "gone")])

    busy = keys.api_busy(key.id)
    assert redis.zrange(busy, 0, -1) == ["r1"]
    assert float(str(redis.zscore(busy, "r1"))) > server_second(redis) * 1000 + 20_000


def test_the_same_request_sent_twice_is_charged_once(redis: Redis, api_keys: ApiKeys) -> None:
    key, _ = api_keys.create("anna", concurrent=1, tokens_per_minute=100)

    charge(api_keys.admit(key, "r1", 40))
    charge(api_keys.admit(key, "r1", 40))

    assert sum(map(int, redis.hvals(keys.api_spent(key.id)))) == 40


def test_tokens_of_the_last_minute_are_summed_and_the_wait_is_until_enough_of_them_leave(
    redis: Redis, api_keys: ApiKeys
) -> None:
    key, _ = api_keys.create("anna", tokens_per_minute=100)
    now = server_second(redis)
    redis.hset(keys.api_spent(key.id), mapping={str(now - 70): 1000, str(now - 50): 30, str(now - 20): 60})

    charge(api_keys.admit(key, "r1", 10))
    refused = short(api_keys.admit(key, "r2", 30))

    assert refused.of == "tokens"
    assert refused.used == 100
    assert 7_000 < refused.retry_ms <= 10_000  # 30 leave with the second 50 s ago
    assert 37_000 < short(api_keys.admit(key, "r3", 31)).retry_ms <= 40_000  # 31 only with the next


def test_a_request_is_charged_what_it_used_instead_of_what_was_guessed(redis: Redis, api_keys: ApiKeys) -> None:
    key, _ = api_keys.create("anna", tokens_per_minute=100)
    guessed = charge(api_keys.admit(key, "r1", 90))
    assert isinstance(api_keys.admit(key, "r2", 20), Short)

    api_keys.account(key, guessed, 15)

    assert sum(map(int, redis.hvals(keys.api_spent(key.id)))) == 15
    charge(api_keys.admit(key, "r2", 20))


def test_requests_that_seem_to_cost_nothing_are_charged_too(redis: Redis, api_keys: ApiKeys) -> None:
    key, _ = api_keys.create("anna", tokens_per_minute=100)
    for number in range(10):  # short texts to embed: less than one token of each is guessed
        api_keys.account(key, charge(api_keys.admit(key, f"r{number}", 0)), 10)

    assert sum(map(int, redis.hvals(keys.api_spent(key.id)))) == 100
    assert short(api_keys.admit(key, "more", 0)).of == "tokens"


def test_rows_of_batches_take_a_part_of_the_tokens_and_count_for_no_request(redis: Redis, api_keys: ApiKeys) -> None:
    key, _ = api_keys.create("anna", concurrent=1, tokens_per_minute=100)
    rows = [charge(api_keys.admit(key, f"row{number}", 25, is_row=True)) for number in range(3)]

    assert short(api_keys.admit(key, "row3", 25, is_row=True)).of == "tokens"
    request = charge(api_keys.admit(key, "r1", 25))
    assert short(api_keys.admit(key, "r2", 1)).of == "concurrent"

    assert api_keys.account(key, rows[0], 0)
    assert not api_keys.account(key, rows[0], 0)
    assert api_keys.account(key, request, 5)
    charge(api_keys.admit(key, "row3", 20, is_row=True))
    assert sum(map(int, redis.hvals(keys.api_spent(key.id)))) == 50 + 5 + 20


def test_of_a_request_that_was_broken_off_the_guess_stays(redis: Redis, api_keys: ApiKeys) -> None:
    key, _ = api_keys.create("anna", tokens_per_minute=100)

    api_keys.account(key, charge(api_keys.admit(key, "r1", 90)), None)

    assert sum(map(int, redis.hvals(keys.api_spent(key.id)))) == 90


def test_a_request_that_may_need_more_than_the_limit_runs_when_nothing_else_was_used(api_keys: ApiKeys) -> None:
    key, _ = api_keys.create("anna", tokens_per_minute=100)

    assert charge(api_keys.admit(key, "r1", 5000)).tokens == 100
    assert short(api_keys.admit(key, "r2", 1)).retry_ms > 50_000


def test_the_counts_of_two_keys_are_apart(api_keys: ApiKeys) -> None:
    anna, _ = api_keys.create("anna", concurrent=1)
    ben, _ = api_keys.create("ben", concurrent=1)

    charge(api_keys.admit(anna, "r1", 0))
    charge(api_keys.admit(ben, "r1", 0))
