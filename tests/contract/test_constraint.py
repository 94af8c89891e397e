"""What a form allows next, told for a vocabulary of bytes, and compared with llama.cpp's own grammars."""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp as C  # noqa: N812  as in the backend

from packtrain.broker.errors import InvalidParameter
from packtrain.broker.sampling import SamplingParams
from packtrain.broker.structured import Grammar, JsonObject, JsonSchema
from packtrain.workers.backends.constraint import MAX_KEPT, Compiler, Constraint, ConstraintFailed
from tests.support.schemas import random_schema
from tests.support.tiny_model import EOS, FIRST_BYTE, write_tiny_model

pytestmark = pytest.mark.contract

END, TEXTLESS = 256, 257
COMPILER = Compiler(258, lambda token: bytes([token]) if token < END else b"", [END])
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def params(form: Any) -> SamplingParams:
    return SamplingParams(response_format=form)


def behind(form: Any, text: str = "") -> Constraint:
    made = COMPILER.constraint(params(form), list(text.encode()))
    assert made
    return made


def allowed(form: Any, text: str = "") -> str:
    """The characters that may follow, ASCII only; a dollar sign for the end."""
    ids = behind(form, text).allowed().tolist()
    return "".join(chr(i) for i in ids if i < 128) + ("$" if END in ids else "")


def is_whole(form: Any, text: str) -> bool:
    try:
        return END in behind(form, text).allowed()
    except ConstraintFailed:
        return False


@given(st.randoms(use_true_random=False))
@SLOW
def test_whatever_is_drawn_at_random_parses_and_validates(rng: Random) -> None:
    schema = random_schema(rng)
    constraint, output = behind(JsonSchema(schema)), bytearray()
    while True:
        ids = constraint.allowed().tolist()
        token = END if END in ids and rng.random() < 0.3 else rng.choice(ids)
        if token == END or len(output) > 3000:
            break
        assert constraint.allows(token)
        constraint.accept(token)
        output.append(token)

    assume(len(output) <= 3000)
    jsonschema.Draft202012Validator(schema).validate(json.loads(output.decode()))


def test_the_end_may_come_only_when_the_text_has_its_form() -> None:
    number = JsonSchema({"type": "integer", "minimum": 5, "maximum": 57})

    assert "$" not in allowed(number)
    assert allowed(number, "5") == "01234567$"
    assert allowed(number, "57") == "$"
    assert behind(number, "5").allows(END)
    assert not behind(number).allows(END)
    assert not behind(number, "5").allows(TEXTLESS)


def test_a_json_object_is_an_object_with_bounded_blanks() -> None:
    assert allowed(JsonObject()) == "{"
    assert is_whole(JsonObject(), '{"a": [1, 2.5e3, "x"],\n  "b": {}}')
    assert not is_whole(JsonObject(), '{"a":  1}')
    assert " " not in allowed(JsonObject(), "{\n" + " " * 24)
    assert not is_whole(JsonObject(), "{}\n")


def test_no_escape_can_leave_half_a_character() -> None:
    assert "u" not in allowed(JsonObject(), '{"\\')
    assert is_whole(JsonObject(), '{"\U0001f600": "é\\n"}')


def test_properties_come_in_the_order_of_the_schema() -> None:
    form = JsonSchema({"type": "object", "properties": {"b": {}, "a": {}}, "required": ["b", "a"]})

    assert is_whole(form, '{"b": 1, "a": 2}')
    assert not is_whole(form, '{"a": 2, "b": 1}')


def test_fixed_texts_stand_before_and_behind_the_json() -> None:
    form = JsonSchema({"const": 7}, prefix='<call "ü">\\\n', suffix="\n</call>")

    assert allowed(form) == "<"
    assert is_whole(form, '<call "ü">\\\n7\n</call>')


@pytest.mark.parametrize(
    "draft", ["http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema"]
)
def test_what_stands_beside_a_reference_holds_in_every_draft(draft: str) -> None:
    schema = {"$schema": draft, "$ref": "#/$defs/d", "$defs": {"d": {"type": "integer", "minimum": 7}}, "maximum": 8}

    assert allowed(JsonSchema(schema)) == "78"


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum .* greater than maximum"),
        ({"const": "\x01"}, "no text has this form"),
        ({"oneOf": [{"minimum": 2}, {"maximum": 5}]}, "use anyOf"),
        (
            {"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False},
            "'a' is unsatisfiable",
        ),
        ({"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(20)]} for i in range(12)]}, "too large"),
    ],
    ids=str,
)
def test_what_only_the_engine_can_tell_is_a_clear_error(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidParameter, match=says) as caught:
        COMPILER.prepare(params(JsonSchema(schema)))

    assert "\n" not in str(caught.value)
    assert "start:" not in str(caught.value)


@pytest.mark.parametrize("grammar", ["root ::= root", r"root ::= [^\x00-\U0010FFFF]"])
def test_a_grammar_without_any_text_is_refused(grammar: str) -> None:
    with pytest.raises(InvalidParameter, match="no text has this form"):
        behind(Grammar(grammar))


@pytest.mark.parametrize(
    "form",
    [
        Grammar('root ::= "x" root "a" | "x" root "b" | "y"'),
        Grammar('root ::= (("x"? "y"?)*)* "z"'),
        Grammar('root ::= "x" ' + '"x"? ' * 5000),
        Grammar('root ::= (("x"{2000}){2000}){2000}'),
        Grammar('root ::= root root | root root root | "x" | ""'),
        JsonSchema({"type": "string", "pattern": "^(x|y)*x(x|y){200}$"}),
        JsonSchema({"type": "string", "pattern": "^((((x*)*)*)*)*$", "maxLength": 9999}),
        JsonSchema({"type": "array", "items": {"type": "array", "minItems": 9999}, "minItems": 9999}),
        JsonSchema({"type": "object", "properties": {f"x{i}": {"pattern": f"^x{{{i}}}.*y"} for i in range(256)}}),
        JsonSchema({"multipleOf": 19_997}),
    ],
    ids=lambda form: str(form)[:60],
)
def test_an_explosive_form_costs_little_or_ends_with_an_error(form: Any) -> None:
    begin = time.process_time()
    with suppress(InvalidParameter, ConstraintFailed):
        constraint = behind(form)
        for _ in range(300):
            ids = constraint.allowed()
            following = next((t for t in b'x"[,' if t in ids), int(ids[0]))
            if following == END:
                break
            constraint.accept(following)

    # Seen: at most 1 s.
    assert time.process_time() - begin < 20


def test_a_constraint_that_its_output_does_not_fit_says_so_when_asked() -> None:
    constraint = behind(JsonObject(), "no object")

    with pytest.raises(ConstraintFailed) as caught:
        constraint.allowed()
    assert "could not be held" in str(caught.value.error)
    with pytest.raises(ConstraintFailed):
        constraint.allows(0)


def test_a_vocabulary_without_the_characters_is_an_error() -> None:
    letters = Compiler(3, lambda token: [b"a", b"b", b""][token], [2])

    with pytest.raises(InvalidParameter, match="response_format cannot be enforced"):
        letters.prepare(params(Grammar('root ::= "ü"')))
    constraint = letters.constraint(params(Grammar('root ::= "aü"')), [0])
    assert constraint
    with pytest.raises(ConstraintFailed, match="no token of this model can follow"):
        constraint.allowed()


def test_sequences_of_one_form_do_not_disturb_each_other() -> None:
    first, second = behind(JsonObject()), behind(JsonObject())
    first.accept(*b'{"a": ')

    assert second.allowed().tolist() == [ord("{")]


def test_forms_that_were_forgotten_are_compiled_again() -> None:
    for number in range(MAX_KEPT + 3):
        COMPILER.prepare(params(JsonSchema({"const": number})))

    assert allowed(JsonSchema({"const": 0})) == "0"


class Llama:
    """llama.cpp's own matcher of a GBNF grammar; None in `sampler` where it refuses the grammar."""

    def __init__(self, vocab: Any, grammar: str) -> None:
        self.sampler = C.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")

    def allowed(self, ids: list[int]) -> set[int]:
        array = (C.llama_token_data * len(ids))(*(C.llama_token_data(i, 1.0, 0.0) for i in ids))
        candidates: Any = C.llama_token_data_array(size=len(ids), selected=-1, sorted=False)
        candidates.data = ctypes.cast(array, ctypes.POINTER(C.llama_token_data))
        C.llama_sampler_apply(self.sampler, ctypes.byref(candidates))
        return {int(entry.id) for entry in array if not np.isneginf(entry.logit)}

    def accept(self, token: int) -> None:
        C.llama_sampler_accept(self.sampler, token)

    def close(self) -> None:
        C.llama_sampler_free(self.sampler)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    options = C.llama_model_default_params()
    options.vocab_only = True
    model = C.llama_model_load_from_file(str(path).encode(), options)
    yield C.llama_model_get_vocab(model)
    C.llama_model_free(model)


_ATOMS = st.sampled_from(
    ['"a"', '"ab"', '"b"', '""', "[ab]", "[^a]", "[a-cü]", ".", '"ü"', "x", "y", r'"\n"', r"[\]^-]"]
)
_SIGNS = st.sampled_from(["", "", "", "?", "*", "+", "{2}", "{1,3}", "{2,}"])
_EXPRESSIONS = st.recursive(
    st.builds("{}{}".format, _ATOMS, _SIGNS),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(" ".join)
        | st.builds("({}){}".format, st.lists(inner, min_size=1, max_size=3).map(" | ".join), _SIGNS)
    ),
    max_leaves=6,
)


@given(root=_EXPRESSIONS, x=_EXPRESSIONS, rng=st.randoms(use_true_random=False))
@settings(SLOW, max_examples=300, suppress_health_check=list(HealthCheck))
def test_a_grammar_means_what_it_means_to_llama_cpp(vocab: Any, root: str, x: str, rng: Random) -> None:
    grammar = f'root ::= {root}\nx ::= "c" ({x}) | "ac"\ny ::= [b] "c"?'
    theirs = Llama(vocab, grammar)
    assume(theirs.sampler)  # left recursion, which Earley parsing does not mind
    # Bytes that its decoder and ours see alike: ASCII without NUL, which it takes for "no text", and those of ü.
    probes = [*range(1, 128), *"ü".encode()]
    ours = behind(Grammar(grammar))
    for _ in range(8):
        ids = set(ours.allowed().tolist())
        expected = theirs.allowed([FIRST_BYTE + byte for byte in probes] + [EOS])
        assert {byte for byte in probes if byte in ids} == {t - FIRST_BYTE for t in expected if t != EOS}
        assert (END in ids) == (EOS in expected)
        going_on = sorted(t - FIRST_BYTE for t in expected if t != EOS)
        if not going_on:
            break
        byte = rng.choice(going_on)
        ours.accept(byte)
        theirs.accept(FIRST_BYTE + byte)
    theirs.close()
