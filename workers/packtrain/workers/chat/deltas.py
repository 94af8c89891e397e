"""What an answer's parser has found since it was last asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from packtrain.broker.chat import CallDelta


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer, in its parts."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)

    def __add__(self, other: Delta) -> Delta:
        calls = merged((*self.calls, *other.calls))
        return Delta(self.content + other.content, self.reasoning + other.reasoning, calls)


def merged(calls: Iterable[CallDelta]) -> tuple[CallDelta, ...]:
    """Neighbouring pieces of one call as one piece."""
    result: list[CallDelta] = []
    for call in calls:
        if result and result[-1].index == call.index:
            result[-1] = replace(result[-1], arguments=result[-1].arguments + call.arguments)
        else:
            result.append(call)
    return tuple(result)


class Collector:
    """Gathers pieces until they are taken.

    Args:
        call_id: Id of the call with this index; the same at every try, for a resumed job goes on with it.
        max_calls: Calls beyond them are dropped; None: no bound.
    """

    def __init__(self, call_id: Callable[[int], str], max_calls: int | None) -> None:
        self._call_id = call_id
        self._max_calls = max_calls
        self._num_calls = 0
        self._delta = Delta()

    @property
    def num_calls(self) -> int:
        """Calls begun so far, dropped ones too."""
        return self._num_calls

    def content(self, text: str) -> None:
        """Text of the answer."""
        if text:
            self._delta += Delta(content=text)

    def reasoning(self, text: str) -> None:
        """Text of the reasoning."""
        if text:
            self._delta += Delta(reasoning=text)

    def begin_call(self, name: str) -> None:
        """A call begins; its arguments follow."""
        index, self._num_calls = self._num_calls, self._num_calls + 1
        self._add(CallDelta(index, id=self._call_id(index), name=_encodable(name)))

    def arguments(self, text: str) -> None:
        """Arguments of the call begun last."""
        if text:
            self._add(CallDelta(self._num_calls - 1, _encodable(text)))

    def take(self) -> Delta:
        """All since the last time."""
        delta, self._delta = self._delta, Delta()
        return delta

    def _add(self, call: CallDelta) -> None:
        if self._max_calls is None or call.index < self._max_calls:
            self._delta += Delta(calls=(call,))


def _encodable(text: str) -> str:
    """Without lone surrogates, which JSON may spell (`\\ud800`) and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text
