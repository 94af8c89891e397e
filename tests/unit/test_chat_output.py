"""What each family of models writes, and what becomes of it: content, reasoning, tool calls."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.broker.chat import Function, Tool, join_calls
from packtrain.workers.chat.deltas import Delta
from packtrain.workers.chat.families import ChatFormat, detect
from packtrain.workers.chat.harmony import HarmonyParser
from packtrain.workers.chat.output import OutputParser, Parser
from tests.support import templates

pytestmark = pytest.mark.unit

WEATHER = Tool(
    function=Function(
        name="weather",
        parameters={"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    )
)
TIME = Tool(function=Function(name="time"))
TOOLS = (WEATHER, TIME)
OSLO = {"city": "Oslo", "days": 2}

Golden = tuple[str, str, list[tuple[str, object]]]


def parser(
    form: ChatFormat, *, in_reasoning: bool = False, tools: tuple[Tool, ...] = TOOLS, is_forced: bool = False,
    max_calls: int | None = None,
) -> Parser:  # fmt: skip
    def call_id(index: int) -> str:
        return f"id{index}"

    if form.is_harmony:
        return HarmonyParser(call_id=call_id, has_tools=bool(tools), max_calls=max_calls)
    return OutputParser(
        form, call_id=call_id, tools=tools, in_reasoning=in_reasoning, is_forced=is_forced, max_calls=max_calls
    )


def read(reader: Parser, *pieces: str, flush: bool = True) -> Delta:
    delta = Delta()
    for piece in pieces:
        delta += reader.push(piece)
    return delta + reader.flush() if flush else delta


def golden(delta: Delta) -> Golden:
    """Content, reasoning and calls, arguments as the values they are."""
    calls: list[tuple[str, object]] = []
    for call in join_calls(delta.calls):
        try:
            arguments = json.loads(call.function.arguments)
        except ValueError:
            arguments = call.function.arguments
        calls.append((call.function.name, arguments))
    return delta.content, delta.reasoning, calls


#: template, whether the prompt ends in reasoning, what the model writes, what it means
CASES: dict[str, tuple[str, bool, str, Golden]] = {
    "plain": (templates.PLAIN, False, "  Hello,\n\nworld \n", ("  Hello,\n\nworld \n", "", [])),
    "qwen thinks and answers": (
        templates.QWEN, False, "<think>\nThey greet.\n</think>\n\nHello!", ("Hello!", "They greet.", []),
    ),
    "qwen does not think": (templates.QWEN, False, "Hello <think>!\n", ("Hello <think>!\n", "", [])),
    "qwen thinks nothing": (templates.QWEN, False, "<think>\n\n</think>\n\nHi", ("Hi", "", [])),
    "qwen never ends thinking": (templates.QWEN, False, "<think>\nWell, </thin", ("", "Well, </thin", [])),
    "qwen calls": (
        templates.QWEN, False,
        '<think>\nA city.\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n'
        "</tool_call>",
        ("", "A city.", [("weather", OSLO)]),
    ),
    "qwen says something and calls twice": (
        templates.QWEN, False,
        'I look it up.\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "</tool_call> {\\"}"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>\n',
        ("I look it up.", "", [("weather", {"city": '</tool_call> {"}'}), ("time", {})]),
    ),
    "hermes, arguments first, as text, with a raw line break": (
        templates.HERMES, False,
        '<tool_call>{"arguments": {"city": "Os\nlo"}, "name": "weather"}</tool_call>'
        '<tool_call>{"name": "time", "arguments": "{\\"zone\\": 1}"}</tool_call>'
        '<tool_call>{"type": "function", "function": {"name": "time", "parameters": null}}</tool_call>',
        ("", "", [("weather", {"city": "Os\nlo"}), ("time", {"zone": 1}), ("time", {})]),
    ),
    "hermes, no call between the marks": (
        templates.HERMES, False, "Write <tool_call>so</tool_call> and <tool_call>{1}</tool_call>.",
        ("Write <tool_call>so</tool_call> and <tool_call>{1}</tool_call>.", "", []),
    ),
    "hermes, cut off in its arguments": (
        templates.HERMES, False, '<tool_call>{"name": "weather", "arguments": {"city": "Os',
        ("", "", [("weather", '{"city": "Os')]),
    ),
    "hermes, cut off before its name": (
        templates.HERMES, False, 'So: <tool_call>{"na', ('So: <tool_call>{"na', "", []),
    ),
    "hermes, a character that does not exist": (
        templates.HERMES, False,
        r'<tool_call>{"arguments": {"city": "\ud800"}, "name": "we\ud800"}</tool_call>'
        r'<tool_call>{"name": "time", "arguments": "\ud800"}</tool_call>',
        ("", "", [("we?", {"city": "\ud800"}), ("time", "?")]),
    ),
    "step begins in its reasoning": (
        templates.STEP, True,
        "They ask for Oslo.\n</think>\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        ("", "They ask for Oslo.", [("weather", OSLO)]),
    ),
    "step repeats the mark": (templates.STEP, True, "<think>\nSo.</think>Yes", ("Yes", "So.", [])),
    "qwen coder, text that looks like a number stays text": (
        templates.QWEN_CODER, False,
        "Now.\n<tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=other>\n[1, {}]\n"
        "</parameter>\n</function>\n</tool_call>",
        ("Now.", "", [("weather", {"city": "12", "other": [1, {}]})]),
    ),
    "glm": (
        templates.GLM, False,
        "<think>Look.</think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
        ("", "Look.", [("weather", OSLO)]),
    ),
    "deepseek r1": (
        templates.DEEPSEEK, True,
        "Look it up.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
        '```json\n{"city": "Oslo", "days": 2}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ("", "Look it up.", [("weather", OSLO), ("time", {})]),
    ),
    "deepseek v3.1": (
        templates.DEEPSEEK, False,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
        '{"city": "Oslo", "days": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ("", "", [("weather", OSLO)]),
    ),
    "mistral, a list": (
        templates.MISTRAL, False,
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo", "days": 2}, "id": "abcdefghi"}, '
        '{"name": "time", "arguments": {}}]',
        ("", "", [("weather", OSLO), ("time", {})]),
    ),
    "magistral, name and arguments": (
        templates.MISTRAL, False,
        '[THINK]Hm.[/THINK]I ask.[TOOL_CALLS]weather[CALL_ID]abc[ARGS]{"city": "Oslo", "days": 2}'
        "[TOOL_CALLS]time[ARGS]{}",
        ("I ask.", "Hm.", [("weather", OSLO), ("time", {})]),
    ),
    "llama": (
        templates.LLAMA, False, '{"name": "weather", "parameters": {"city": "Oslo", "days": 2}}',
        ("", "", [("weather", OSLO)]),
    ),
    "llama, several, with its tag": (
        templates.LLAMA, False,
        '<|python_tag|>{"type": "function", "name": "weather", "parameters": {"city": "Oslo", "days": 2}}; '
        '{"name": "time", "parameters": {}}',
        ("", "", [("weather", OSLO), ("time", {})]),
    ),
    "llama, an object that is no call": (
        templates.LLAMA, False, ' {"name": "Ada", "born": 1815}', (' {"name": "Ada", "born": 1815}', "", []),
    ),
    "llama, a set": (templates.LLAMA, False, "{1, 2} is a set", ("{1, 2} is a set", "", [])),
    "gemma": (
        templates.GEMMA, False,
        "<|channel>thought\nHm.\n<channel|>"
        '<|tool_call>call:weather{city:<|"|>Oslo, "N": {x:1}<|"|>,days:2}<tool_call|>',
        ("", "Hm.", [("weather", {"city": 'Oslo, "N": {x:1}', "days": 2})]),
    ),
    "kimi": (
        templates.KIMI, False,
        "Sure.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "Oslo", "days": 2}<|tool_call_end|><|tool_call_begin|>functions.time:1'
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        ("Sure.", "", [("weather", OSLO), ("time", {})]),
    ),
    "minimax": (
        templates.MINIMAX, True,
        'Hm.\n</think>\n\n<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Oslo</parameter>\n'
        '<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>',
        ("", "Hm.", [("weather", OSLO)]),
    ),
    "a template without tools": (
        templates.PLAIN, False, '<tool_call>{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}</tool_call>',
        ("", "", [("weather", OSLO)]),
    ),
    "a template without tools, marks forgotten": (
        templates.PLAIN, False, '\n{"name": "time", "arguments": {}}\n', ("", "", [("time", {})]),
    ),
    "harmony answers": (
        templates.HARMONY, False,
        "<|channel|>analysis<|message|>A greeting.<|end|><|start|>assistant<|channel|>final<|message|>Hi <|there",
        ("Hi <|there", "A greeting.", []),
    ),
    "harmony says what it does and calls": (
        templates.HARMONY, False,
        "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis<|message|>Two.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.weather <|constrain|>json<|message|>{"city": "Oslo", "days": 2}<|call|>',
        ("I look.", "One.\nTwo.", [("weather", OSLO)]),
    ),
    "harmony, recipient before the channel": (
        templates.HARMONY, False, " to=functions.time<|channel|>commentary json<|message|>{}", ("", "", [("time", {})]),
    ),
    "harmony without headers": (templates.HARMONY, False, "Just text.", ("Just text.", "", [])),
    "harmony, cut off in a header": (
        templates.HARMONY, False, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assist", ("", "Hm.", []),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_answer_is_taken_apart(case: tuple[str, bool, str, Golden]) -> None:
    template, in_reasoning, text, expected = case

    assert golden(read(parser(detect(template), in_reasoning=in_reasoning), text)) == expected


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_character_by_character_gives_the_same(case: tuple[str, bool, str, Golden]) -> None:
    template, in_reasoning, text, expected = case

    assert golden(read(parser(detect(template), in_reasoning=in_reasoning), *text)) == expected


_SNIPPETS = sorted(
    {text for _, _, text, _ in CASES.values()}
    | {piece for _, _, text, _ in CASES.values() for piece in (text[: len(text) // 2], text[len(text) // 3 :])}
    | {"<think>", "</think>", "<tool_call>", "</tool_call>", "{", "}", '"', "\\", " ", "\n", "name", '{"name": "time"'}
    | {"<|channel|>", "<|message|>", "<|end|>", "<|start|>", "[TOOL_CALLS]", "[ARGS]", "x" * 300}
)
FORMATS = sorted({template for template, _, _, _ in CASES.values()})


@given(
    template=st.sampled_from(FORMATS),
    in_reasoning=st.booleans(),
    text=st.lists(st.sampled_from(_SNIPPETS), max_size=6).map("".join),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
    end=st.integers(0, 3000),
    flush=st.booleans(),
)
def test_the_cut_into_pieces_changes_nothing(
    template: str, in_reasoning: bool, text: str, cuts: list[int], end: int, flush: bool
) -> None:
    form, text = detect(template), text[:end]
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]

    def answer(*parts: str) -> Delta:
        # What is shown after a part of the text must not depend on the cuts either: a resume relies on it.
        return read(parser(form, in_reasoning=in_reasoning and form.reasoning is not None), *parts, flush=flush)

    assert answer(*pieces) == answer(text) == answer(*text)


@given(text=st.text(alphabet='<>/thinkol_ca{}"nme:\\ \n[]TS', max_size=60), template=st.sampled_from(FORMATS))
def test_no_text_breaks_a_parser(text: str, template: str) -> None:
    delta = read(parser(detect(template)), text)

    assert all(call.name for call in delta.calls if call.id)


@given(text=st.text(alphabet="ab<thinkol_c>{ \n", max_size=40))
def test_without_marks_nothing_is_lost(text: str) -> None:
    form = detect(templates.QWEN)
    delta = read(parser(form), *text)

    assert delta.content == text or any(mark in text for mark in form.marks)


@pytest.mark.parametrize(
    ("template", "marks"),
    [
        (templates.QWEN, {"<think>", "</think>", "<tool_call>", "</tool_call>"}),
        (
            templates.DEEPSEEK,
            {"<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"},
        ),
        (templates.MISTRAL, {"[THINK]", "[/THINK]", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"}),
        (templates.KIMI, {"<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"}),
        (templates.GEMMA, {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'}),
        (templates.LLAMA, {"<|python_tag|>"}),
        (templates.HARMONY, {"<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|constrain|>"}),
    ],
)
def test_special_tokens_that_mark_parts_are_named(template: str, marks: set[str]) -> None:
    assert marks <= detect(template).marks


def test_nothing_is_shown_that_may_become_a_mark() -> None:
    reader = parser(detect(templates.QWEN))

    shown = [reader.push(piece).content for piece in ("Hi", "  <tool", "_cal", "x", " <", "b>")]

    assert shown == ["Hi", "", "", "  <tool_calx", "", " <b>"]


def test_arguments_come_as_they_are_written() -> None:
    reader = parser(detect(templates.HERMES))
    pieces = ['<tool_call>{"name": "weather", ', '"arguments": {"ci', 'ty": "Os', 'lo"}', "}</tool_call>"]

    calls = [call for piece in pieces for call in reader.push(piece).calls]

    assert [(call.index, call.id, call.name, call.arguments) for call in calls] == [
        (0, "id0", "weather", '{"ci'),
        (0, "", "", 'ty": "Os'),
        (0, "", "", 'lo"}'),
    ]


def test_marks_without_calls_are_text_after_a_while() -> None:
    once, call = '<tool_call>{"name":"', '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
    text = once * 3000

    assert golden(read(parser(detect(templates.HERMES)), text)) == (text, "", [])
    assert golden(read(parser(detect(templates.HERMES)), *("<tool_call>{}</tool_call>" * 20 + call)))[2] == []


def test_without_tools_calls_are_text() -> None:
    text = '<tool_call>{"name": "time", "arguments": {}}</tool_call>'

    assert golden(read(parser(detect(templates.HERMES), tools=()), text)) == (text, "", [])


@pytest.mark.parametrize("name", ["qwen says something and calls twice", "mistral, a list", "deepseek r1", "kimi"])
def test_calls_beyond_the_bound_are_dropped(name: str) -> None:
    template, in_reasoning, text, (content, reasoning, calls) = CASES[name]

    delta = read(parser(detect(template), in_reasoning=in_reasoning, max_calls=1), *text)

    assert golden(delta) == (content, reasoning, calls[:1])


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}', [("weather", OSLO)]),
        ('[{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}, {"name": "time", "arguments": {}}]',
         [("weather", OSLO), ("time", {})]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("template", FORMATS)
def test_a_forced_answer_is_read_as_calls_in_every_family(
    template: str, text: str, calls: list[tuple[str, object]]
) -> None:
    form = detect(template)
    reader = OutputParser(form, call_id=str, tools=TOOLS, is_forced=True)

    assert golden(read(reader, *text)) == ("", "", calls)
