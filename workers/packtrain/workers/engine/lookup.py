"""Prompt lookup: guess the next tokens of a sequence from what followed when its last few tokens stood there before.

An answer that quotes its prompt, or goes on in a pattern, says much that can be read off. The guesses are computed as
further rows of the step that would have computed one, and each is kept only if the sequence's own sampler draws just
that token: so an answer has the tokens it would have had, and several of them in one step.

    tokens      a list of x, y and z . x ,       the last two stood there before: guess y, and, z
    step        , y and z                        four rows instead of one
    sampled     y and w                          so far right: y, and; w is drawn in place of z

Rows are not free, on a CPU least of all: with SmolLM2 on two cores a step of 4 rows takes 2.4 times as long as one of a
single row, a step of 16 takes 6.4 times. So half of the guesses must be right to gain anything: a sequence guesses as
many as have been right, and rests when none is.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Lengths of what is looked up, tokens; the longest that is found wins.
NGRAMS = (3, 2)
#: Guesses of one sequence in one step: to begin with, and at most.
FIRST_GUESSES, MAX_GUESSES = 2, 10
#: Tokens that a sequence goes without guesses after one that was all wrong; twice as many after each further one, until
#: one is all right.
FIRST_REST, MAX_REST = 4, 64
#: A step with more rows has no guesses, nor so many that it gets them.
GUESSING_ROWS = 16


class Guesser:
    """Guesses for one sequence. Its tokens only grow."""

    def __init__(self) -> None:
        self._behind: dict[tuple[int, ...], int] = {}  # n-gram: the place behind it where it stood last
        self._num_read = 0  # n-grams that end before this place are noted
        self._shift = 0  # of the last guess, if it was right: how far before the end of the tokens it was read off
        self._length = FIRST_GUESSES
        self._rest = FIRST_REST
        self._wakes_at = 0  # number of tokens

    def guess(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """What may follow these tokens; often nothing.

        Args:
            tokens: All of the sequence: prompt and output.
            most: More guesses are of no use.
        """
        count = min(self._length, most)
        if count <= 0 or len(tokens) < self._wakes_at:
            return ()
        self._read(tokens)
        begin = self._place_behind(tokens)
        if not begin:
            return ()
        self._shift = len(tokens) - begin
        guess: list[int] = []
        for place in range(begin, begin + count):  # behind the end it repeats itself
            guess.append(tokens[place] if place < len(tokens) else guess[place - len(tokens)])
        return tuple(guess)

    def learn(self, num_guessed: int, num_right: int, num_tokens: int) -> None:
        """How many of the last guesses were right, and how many tokens the sequence has now."""
        if num_right == num_guessed:
            # What was cut short for others says nothing of what could have been right.
            self._length = max(self._length, min(2 * num_guessed, MAX_GUESSES))
            self._rest = FIRST_REST
            return
        self._length, self._shift = max(num_right, 1), 0
        if not num_right:
            self._wakes_at = num_tokens + self._rest
            self._rest = min(2 * self._rest, MAX_REST)

    def _place_behind(self, tokens: Sequence[int]) -> int:
        """Where to read on; 0: nowhere. What is being quoted goes before what stood there last."""
        for size in NGRAMS:
            tail, begin = tokens[-size:], len(tokens) - self._shift
            if self._shift and begin >= size and tokens[begin - size : begin] == tail:
                return begin
            if found := self._behind.get(tuple(tail)):
                return found
        return 0

    def _read(self, tokens: Sequence[int]) -> None:
        """Note the n-grams that something follows."""
        for end in range(self._num_read, len(tokens)):
            for size in NGRAMS:
                if end >= size:
                    self._behind[tuple(tokens[end - size : end])] = end
        self._num_read = len(tokens)
