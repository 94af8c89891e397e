"""Embeddings in OpenAI's shape: lists of numbers, or base64 of 32-bit little-endian floats."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Sequence
from typing import Any

from packtrain.client.openai.forms import Form, Stamp, extras_of
from packtrain.client.result import Result


class EmbeddingForm(Form):
    """A list of embeddings. They do not stream."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    def body(self, stamp: Stamp, results: Sequence[Result], *, extras: bool = True) -> dict[str, Any]:
        data = [
            {"object": "embedding", "index": index, "embedding": self._encoded(result.embedding or ())}
            for index, result in enumerate(results)
        ]
        tokens = sum(result.usage.prompt_tokens for result in results)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        said = {"object": "list", "data": data, "model": stamp.model, "usage": usage}
        return {**said, **(extras_of(results) if extras else {})}

    def _encoded(self, vector: Sequence[float]) -> list[float] | str:
        if self._encoding != "base64":
            return list(vector)
        floats = array("f", vector)
        if not _IS_LITTLE_ENDIAN:
            floats.byteswap()
        return base64.b64encode(floats.tobytes()).decode()


_IS_LITTLE_ENDIAN = array("H", [1]).tobytes()[0] == 1
