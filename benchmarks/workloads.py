"""The jobs that versus_llama_server.py hands to both sides: same prompts, same lengths, same sampling. Pure.

Prompts are continued as they stand, without a chat template, so that both sides see the same tokens and nothing but
what is meant to be shared is shared. They are made of short common words, each of which is about one token to most
models.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

#: Sampling as people use it; llama.cpp's own defaults, named so that both sides use them whatever theirs become.
SAMPLING: Mapping[str, float] = {"top_k": 40, "top_p": 0.95, "min_p": 0.05}
_TEXT = """the rain falls on old stone and the river runs past bread salt owls clocks mirrors bridges lamps trains tea
moss snow honey maps kites birds trees hills roads ships bells books doors windows stars clouds winds fields farms
horses dogs wolves apples gold iron glass paper wood fire water light night morning winter summer music silence"""
WORDS = _TEXT.split()
PREFIX_TOKENS = 400
PREFIX_OUTPUT = 32
SHARED_TOKENS = 120  # of every third prompt of `same`
SAME_OUTPUT = 48
SAME_PROMPTS = (10, 900)


@dataclass(frozen=True, slots=True)
class Ask:
    """One job of a benchmark."""

    number: int
    prompt: str
    max_tokens: int  # exactly as many come: the end of text is ignored
    temperature: float
    delay_s: float = 0.0  # from when a user takes it to when he asks


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for an `Ask`, from either side."""

    text: str
    prompt_tokens: int
    output_tokens: int
    logprobs: str | None  # of the sampled tokens, every digit, for comparison only; None: not asked for, or not given


def text(num_words: int, name: str) -> str:
    """Words by chance, always the same for the same name."""
    chance = random.Random(name)
    return " ".join(chance.choice(WORDS) for _ in range(num_words))


def length(number: int) -> int:
    """Tokens of an answer: 32 to 96, so that jobs end at different times, as they do in life."""
    return 32 + number * 37 % 65


@dataclass(frozen=True, slots=True)
class Workloads:
    """The jobs, for a model to which a word of `WORDS` and the space before it are so many tokens on average."""

    tokens_per_word: float

    def text(self, num_tokens: int, name: str) -> str:
        """About so many tokens, always the same for the same name."""
        return text(max(1, round(num_tokens / self.tokens_per_word)), name)

    def warm_up(self, slots: int) -> list[Ask]:
        """A short job for every slot, with nothing in common with any other job."""
        return [Ask(i, self.text(24, f"warm {i}"), 8, 0.0) for i in range(slots)]

    def mixed(self, jobs: int, temperature: float) -> list[Ask]:
        """Prompts of 10 to 200 tokens that begin differently, 32 to 96 tokens each."""
        return [Ask(i, self.text(10 + i * 61 % 191, f"mixed {i}"), length(i), temperature) for i in range(jobs)]

    def prefix(self, jobs: int, temperature: float) -> list[Ask]:
        """One document of about 400 tokens, and a different question about it for each job; 32 tokens each."""
        document = self.text(PREFIX_TOKENS, "document")
        questions = [self.text(10, f"question {i}") for i in range(jobs)]
        return [
            Ask(i, f"{document}.\n\nQuestion: {question}?\nAnswer:", PREFIX_OUTPUT, temperature)
            for i, question in enumerate(questions)
        ]

    def same(self, jobs: int, temperature: float) -> list[Ask]:
        """Prompts of 10 to 900 tokens in no order, a third of which begin alike, that arrive one by one.

        Those of two temperatures differ, so that neither finds the other's in a cache.
        """
        chance = random.Random("same")
        low, high = SAME_PROMPTS
        sizes = [low + (high - low) * i // max(1, jobs - 1) for i in range(jobs)]
        chance.shuffle(sizes)
        shared = self.text(SHARED_TOKENS, f"shared {temperature}").split()
        asks = []
        for i, size in enumerate(sizes):
            words = self.text(size, f"same {i} {temperature}").split()
            prompt = (shared + words)[: len(words)] if i % 3 == 0 else words
            asks.append(Ask(i, " ".join(prompt), SAME_OUTPUT, temperature, delay_s=chance.uniform(0, 0.5)))
        return asks
