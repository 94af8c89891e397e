"""Chat templates: as llama-cpp-python renders them, and no longer or larger than they may."""

from __future__ import annotations

from typing import Any

import psutil
import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from packtrain.workers.chat.template import ChatTemplate
from packtrain.workers.template_process import TemplateLimit, TemplateProcess, TemplateRefuses, TemplateUnusable
from tests.support import templates

pytestmark = pytest.mark.unit

FAMILIES = {name: value for name, value in vars(templates).items() if name.isupper() and name[0] != "_"}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Åre"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "<look> & see", "parameters": {}}}
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hello \ud800 🦙\n"}]},
    {
        "messages": [
            {"role": "user", "content": "Oslo?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "Rain."},
        ],
        "tools": [TOOL],
        "enable_thinking": False,
        "mood": 1.5,
    },
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "tools": None},
]
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TWICE = "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
DOUBLES = "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}"


def process(source: str, *, max_chars: int = 1_000_000, cpu_s: float = 1) -> TemplateProcess:
    return TemplateProcess(source, bos_token="<s>", eos_token="</s>", max_chars=max_chars, cpu_s=cpu_s)


def outcome(render: Any, chat: dict[str, Any]) -> str:
    try:
        return str(render(chat))
    except Exception as error:
        return f"refused: {error}"


@pytest.mark.parametrize("chat", CHATS, ids=["plain", "tools", "system"])
@pytest.mark.parametrize(
    "source",
    [
        *FAMILIES.values(),
        "{{ bos_token }}{{ eos_token }}{{ tools }}{{ functions }}{{ tool_choice }}{{ add_generation_prompt }}",
        "{% generation %}{{ messages[0].content | trim }}{% endgeneration %}",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson(indent=2) }}{% endfor %}",
        "{{ strftime_now('%Y') }}{{ missing }}{{ missing is defined }}",
        "{{ raise_exception('not these') }}",
    ],
    ids=[*FAMILIES, "constants", "generation", "break", "now", "raises"],
)
def test_a_template_renders_as_it_does_with_llama_cpp_python(source: str, chat: dict[str, Any]) -> None:
    formatter = Jinja2ChatFormatter(source, eos_token="</s>", bos_token="<s>")
    ours = ChatTemplate(source, bos_token="<s>", eos_token="</s>", max_chars=10_000)

    assert outcome(ours.render, chat) == outcome(lambda chat: formatter(**chat).prompt, chat)


def test_the_sandbox_keeps_templates_from_pythons_insides() -> None:
    ours = ChatTemplate("{{ messages.__class__.__mro__ }}", bos_token="", eos_token="", max_chars=100)

    assert "unsafe" in outcome(ours.render, CHATS[0])


@pytest.mark.parametrize("chat", CHATS, ids=["plain", "tools", "system"])
def test_its_process_renders_as_the_template_itself(chat: dict[str, Any]) -> None:
    ours = ChatTemplate(templates.HERMES, bos_token="<s>", eos_token="</s>", max_chars=10_000)
    remote = process(templates.HERMES)

    assert remote.render(chat) == ours.render(chat)
    remote.close()


@pytest.mark.parametrize("source", [LOOPS, TWICE, "{{ 9 ** (9 ** (9 * messages | length)) }}"])
def test_time_is_bounded_in_loops_macros_and_single_operations(source: str) -> None:
    remote = process(source, cpu_s=0.1)

    with pytest.raises(TemplateLimit, match=r"more than 0\.1 s of CPU time"):
        remote.render(CHATS[0])
    remote.close()


@pytest.mark.parametrize("source", ["{{ 'a' * 10 ** 10 }}", "{{ messages | string | center(10 ** 10) }}", DOUBLES])
def test_memory_is_bounded(source: str) -> None:
    remote = process(source, cpu_s=20)

    with pytest.raises(TemplateLimit, match=r"more than 1024 MiB of memory"):
        remote.render(CHATS[0])
    remote.close()


def test_a_prompt_is_bounded() -> None:
    remote = process("{% for i in range(1000) %}x{% endfor %}", max_chars=999)

    with pytest.raises(TemplateRefuses, match="it makes more than 999 characters"):
        remote.render(CHATS[0])
    remote.close()


def test_a_macro_that_calls_itself_for_ever_is_an_error() -> None:
    remote = process("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")

    with pytest.raises(TemplateRefuses, match="recursion"):
        remote.render(CHATS[0])
    remote.close()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for %}", "Expected an expression"),
        ("{{ " + "(" * 100_000 + ")" * 100_000 + " }}", "recursion"),
        ("{{ 9 ** (9 ** 81) }}", "more than 1 s of CPU time to compile"),  # Jinja folds constants
    ],
)
def test_what_cannot_be_compiled_is_tried_once(source: str, says: str) -> None:
    remote = process(source)

    for _ in range(2):
        with pytest.raises(TemplateUnusable, match=says):
            remote.render(CHATS[0])
    remote.close()


def test_the_next_chat_is_rendered_after_one_that_took_too_long() -> None:
    remote = process(
        "{% if messages[0].content == 'bomb' %}" + LOOPS + "{% endif %}{{ messages[0].content }}", cpu_s=0.1
    )
    with pytest.raises(TemplateLimit):
        remote.render({"messages": [{"content": "bomb"}]})

    assert remote.render({"messages": [{"content": "calm"}]}) == "calm"
    remote.close()


def test_a_process_that_is_gone_is_started_again() -> None:
    remote = process("{{ messages[0].content }}")
    assert remote.render({"messages": [{"content": "one"}]}) == "one"
    assert remote._child
    child = psutil.Process(remote._child.pid)
    child.kill()
    child.wait()

    assert remote.render({"messages": [{"content": "two"}]}) == "two"
    remote.close()


def test_its_process_knows_no_secrets_and_ends_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKTRAIN_URL", "redis://:secret@localhost")
    remote = process("x")
    remote.render(CHATS[0])
    assert remote._child
    child = psutil.Process(remote._child.pid)

    assert "PACKTRAIN_URL" not in child.environ()
    remote.close()
    assert not child.is_running()
