"""GBNF as it is read: what is refused, and where it says so. What it means: tests/contract/test_constraint.py."""

from __future__ import annotations

import pytest

from packtrain.broker.gbnf import MAX_CHARS, MAX_NESTING, to_lark

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ('root ::= "a', 'line 1: this " is never closed'),
        ("root ::= [a", r"line 1: this \[ is never closed"),
        ('root ::= ("a"\n', r"line 1: this \( is never closed"),
        ('root ::= "a"\n\nnext ::= ]', "line 3: unexpected ']'"),
        ('root ::= "a" | other', "line 1: rule 'other' is used and not defined"),
        ('root ::= "a"\nroot ::= "b"', "line 2: rule 'root' is defined twice"),
        ('start ::= "a"', "no rule 'root'"),
        ("", "no rule 'root'"),
        ('root = "a"', "line 1: expected ::= after 'root'"),
        ('::= "a"', "line 1: expected the name of a rule, found ':'"),
        (r'root ::= "\q"', r"line 1: unknown escape \\q"),
        (r'root ::= "\x4"', r"line 1: unknown escape \\x4"),
        (r'root ::= "\uD800"', r"line 1: U\+D800 is no character"),
        (r'root ::= "\U00110000"', r"line 1: U\+110000 is no character"),
        ("root ::= [z-a]", "line 1: a range runs backwards"),
        ("root ::= []", "line 1: a class"),
        ('root ::= "a"{3,2}', "line 1: a repetition whose most is below its least"),
        ('root ::= "a"{2001}', "line 1: a repetition of more than 2000"),
        ('root ::= "a"{,3}', "line 1: expected {m}"),
        ("root ::= <think>", "line 1: tokens"),
        ("root ::= !<[7]>", "line 1: tokens"),
        ("root ::= " + "(" * (MAX_NESTING + 1) + '"a"' + ")" * (MAX_NESTING + 1), "nested more than"),
        ("root ::= " + '"a"' * MAX_CHARS, "characters, at most"),
    ],
)
def test_a_broken_grammar_is_refused_with_its_line(grammar: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        to_lark(grammar)


def test_a_line_ends_a_rule_but_not_within_parentheses() -> None:
    grammar = '# first\nroot ::= (\n  "a" # one\n  | b-1\n)\n\nb-1 ::=\n  [^x]{2,}\r\n'

    start, other = to_lark(grammar).splitlines()

    assert start == f"start: ((/\\u{{61}}/) | {other.partition(':')[0]})"
    assert other.endswith(": /[^\\u{78}-\\u{78}]/{2,}")


def test_every_character_is_a_terminal_of_its_own() -> None:
    assert to_lark('root ::= "ab"? .') == "start: (/\\u{61}/ /\\u{62}/)? /(?s:.)/"


def test_no_character_reaches_lark_as_itself() -> None:
    assert '"' not in to_lark(r'root ::= "\"/\n%\\" [/\]"]')
