"""Who may do what in the broker: the table covers every key, and says what it should of each user."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from packtrain.broker import keys
from packtrain.broker.access import GROUPS, RIGHTS, Role, hashed, line, rules, table
from packtrain.broker.ids import InstanceId, JobId, ModelId, NodeId, Route

pytestmark = pytest.mark.unit

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"
NODE, INSTANCE, ROUTE, JOB = NodeId("attic"), InstanceId("m-1"), Route("m@deterministic"), JobId("0" * 32)
EVERY_KEY = {
    *(value for name, value in vars(keys).items() if isinstance(value, str) and value.startswith("pt:")
      and not name.endswith("_PREFIX")),
    keys.job(JOB), keys.out(JOB), keys.ready(ROUTE, "bulk"), keys.movable(ROUTE, "bulk"), keys.rate(ROUTE),
    keys.held(INSTANCE), keys.model(ModelId("m")), keys.node(NODE), keys.offers(NODE), keys.instance(INSTANCE),
    keys.pull("p"), keys.invite("i"), keys.api_busy("k"), keys.api_spent("k"), f"{keys.FAIR_PREFIX}m:i",
    f"{keys.QUEUED_PREFIX}m:i", keys.model_queue(ROUTE), keys.node_queue(NODE),
}  # fmt: skip
PATTERNS = [pattern.format(node="*") for group in GROUPS.values() for pattern in group.patterns]


@pytest.mark.parametrize("key", sorted(EVERY_KEY))
def test_every_key_is_in_one_group(key: str) -> None:
    """Whoever adds a key says here who may read and write it."""
    groups = [
        name for name, group in GROUPS.items()
        if any(fnmatchcase(key, pattern.format(node="*")) for pattern in group.patterns)
    ]  # fmt: skip

    assert len(groups) == 1, f"add {key} to one group of broker/access.py"


def test_the_keys_of_the_table_in_keys_are_known() -> None:
    rows = [row.split("|")[1].strip() for row in (keys.__doc__ or "").splitlines() if row.startswith("| pt:")]
    heads = [row.split("<")[0].split(" / ")[0] for row in rows]

    assert len(heads) > 30
    assert not [head for head in heads if not any(pattern.startswith(head) for pattern in PATTERNS)]


def test_each_role_speaks_of_groups_that_there_are() -> None:
    assert not {group for rights in RIGHTS.values() for group in rights.keys} - set(GROUPS)


def test_who_may_see_prompts_and_answers() -> None:
    assert {role.value for role, rights in RIGHTS.items() if "jobs" in rights.keys} == {
        "coordinator", "gateway", "node", "client",
    }  # fmt: skip


def test_secrets_are_of_those_who_need_them() -> None:
    may = {group: {role.value for role, rights in RIGHTS.items() if group in rights.keys} for group in GROUPS}

    assert may["joining"] == set()  # the admin alone
    assert may["API keys"] == {"gateway"}
    assert may["file secret"] == {"gateway", "node"}


def test_a_machine_has_its_own_keys_and_reads_those_of_others() -> None:
    words = rules(Role.NODE, node=NODE)

    assert {"~pt:node:attic", "%R~pt:node:*", "~node.attic"} <= set(words)
    assert not {"~pt:node:*", "~node.*"} & set(words)
    assert "~pt:node:*" in rules(Role.NODE)


def test_an_old_server_is_given_no_rule_that_it_does_not_know() -> None:
    assert not [word for role in Role for word in rules(role, can_split=False) if word.startswith("%")]


def test_channels_are_those_of_the_database() -> None:
    assert "&/3.celery.pidbox" in rules(Role.NODE, db=3)


def test_a_line_holds_no_password() -> None:
    text = line("client", hashed("secret"), rules(Role.CLIENT))

    assert text.startswith("user client on #2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b resetch")
    assert " secret" not in text


def test_the_docs_show_this_table() -> None:
    assert table() in SECURITY.read_text(), "docs/security.md: paste what packtrain.broker.access.table() gives"
