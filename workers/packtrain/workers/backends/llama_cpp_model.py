"""A model file that llama.cpp has loaded: its vocabulary, its chat template, its build. What it computes is in
llama_cpp_backend.py; nothing here needs a context."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_cpp import __version__ as llama_cpp_version
from llama_cpp import llama_cpp as C

from packtrain.broker.errors import InvalidParameter, InvalidRequest, ModelLoadFailed
from packtrain.workers.backends.constraint import Compiler
from packtrain.workers.backends.llama_cpp_checks import check_model
from packtrain.workers.backends.llama_cpp_library import features, first_error, forget_errors
from packtrain.workers.backends.llama_cpp_params import RemoteLayers, model_params, numeric_flags
from packtrain.workers.chat.families import ChatFormat, detect
from packtrain.workers.chat.infill import FimTokens
from packtrain.workers.chat.masking import SpecialTexts
from packtrain.workers.chat.rendering import MAX_RENDERED_CHARS
from packtrain.workers.load_options import LoadOptions
from packtrain.workers.receipts import Build
from packtrain.workers.template_process import TemplateLimit, TemplateProcess, TemplateRefuses, TemplateUnusable


class LlamaCppModel:
    """The half of a `Backend` that is about text. See `base.Backend` for what may be called from which thread.

    Args:
        path: GGUF file; of a split model, its first part.
        model: Id, for messages.
        options: Those that tell on the weights: GPU layers, numerics and the like.
        remote: Where its last layers are, of a split model.

    Raises:
        ModelLoadFailed: llama.cpp refused the file, its own words are in the message.
    """

    def __init__(self, path: Path, *, model: str, options: LoadOptions, remote: RemoteLayers | None = None) -> None:
        self._name = model
        self._options = options
        self._pieces: dict[int, bytes] = {}
        self._is_split = remote is not None
        self._model = _load(path, options, remote)
        check_model(self._model, model)
        self._vocab = C.llama_model_get_vocab(self._model)
        self._n_vocab = int(C.llama_vocab_n_tokens(self._vocab))
        self._end_tokens = [t for t in range(self._n_vocab) if C.llama_vocab_is_eog(self._vocab, t)]
        template = (C.llama_model_chat_template(self._model, None) or b"").decode("utf-8", "replace")
        self._template = self._chat_template(template)
        self._chat_format = detect(template)
        controls = C.LLAMA_TOKEN_ATTR_CONTROL | C.LLAMA_TOKEN_ATTR_UNKNOWN
        special = {
            t: self._text_of(t) for t in range(self._n_vocab) if C.llama_vocab_get_attr(self._vocab, t) & controls
        }
        self._special_texts = SpecialTexts(special.values())
        marks = self._chat_format.marks
        self._marks = {t for t, text in special.items() if text in marks} - set(self._end_tokens)
        self._compiler = Compiler(self._n_vocab, self.piece, self._end_tokens)

    @property
    def build(self) -> Build:
        flags = numeric_flags(self._options)
        if self._is_split and self._options.numerics == "fast":
            flags += " split"  # shards do not repack weights; in deterministic numerics nobody does
        return Build(f"llama-cpp-python {llama_cpp_version}", features(), flags)

    @property
    def chat_format(self) -> ChatFormat:
        return self._chat_format

    @property
    def special_texts(self) -> SpecialTexts:
        return self._special_texts

    @property
    def fim_tokens(self) -> FimTokens | None:
        prefix, suffix = int(C.llama_vocab_fim_pre(self._vocab)), int(C.llama_vocab_fim_suf(self._vocab))
        middle = int(C.llama_vocab_fim_mid(self._vocab))
        if prefix < 0 or suffix < 0:
            return None
        begin = (int(C.llama_vocab_bos(self._vocab)),) if C.llama_vocab_get_add_bos(self._vocab) else ()
        return FimTokens(prefix, suffix, middle if middle >= 0 else None, begin)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        data = text.encode()
        capacity = len(data) + 8
        buffer = (C.llama_token * capacity)()
        count = C.llama_tokenize(self._vocab, data, len(data), buffer, capacity, add_special, parse_special)
        assert count >= 0, f"{-count} tokens from {len(data)} bytes"
        return list(buffer[:count])

    def render_chat(self, variables: Mapping[str, Any]) -> str:
        if self._template is None:
            raise InvalidRequest(f"{self._name!r} has no chat template; send a plain prompt (kind 'complete') instead")
        try:
            return self._template.render(variables)
        except TemplateRefuses as error:
            raise InvalidParameter(
                f"the chat template of {self._name!r} refuses these messages ({error}); change their roles or order"
            ) from error
        except TemplateLimit as limit:
            raise InvalidRequest(
                f"the chat template of {self._name!r} takes {limit} for these messages; shorten them, or send a plain "
                "prompt (kind 'complete') instead"
            ) from limit
        except TemplateUnusable as error:
            raise InvalidRequest(
                f"{self._name!r} has no usable chat template ({error}); send a plain prompt (kind 'complete') instead"
            ) from error

    def piece(self, token: int) -> bytes:
        if not 0 <= token < self._n_vocab:  # resumed from another file of that name; C would end the process
            return b""
        if token not in self._pieces:
            self._pieces[token] = self._bytes_of(token, is_shown=token in self._marks)
        return self._pieces[token]

    def spelling(self, token: int) -> bytes:
        return self._bytes_of(token, is_shown=True) if 0 <= token < self._n_vocab else b""

    def is_end(self, token: int) -> bool:
        return bool(C.llama_vocab_is_eog(self._vocab, token))

    def shutdown(self) -> None:
        if self._template:
            self._template.close()
        C.llama_model_free(self._model)

    def _chat_template(self, source: str) -> TemplateProcess | None:
        if not source:
            return None
        return TemplateProcess(
            source,
            eos_token=self._text_of(C.llama_vocab_eos(self._vocab)),
            bos_token=self._text_of(C.llama_vocab_bos(self._vocab)),
            max_chars=MAX_RENDERED_CHARS,
        )

    def _bytes_of(self, token: int, *, is_shown: bool) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        size = C.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, is_shown)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = C.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, is_shown)
        return buffer.raw[:size]

    def _text_of(self, token: int) -> str:
        text = C.llama_vocab_get_text(self._vocab, token) if token >= 0 else b""
        return str((text or b"").decode("utf-8", "replace"))


def _load(path: Path, options: LoadOptions, remote: RemoteLayers | None) -> Any:
    if options.numerics == "deterministic":
        os.environ["GGML_CPU_TILED_MM"] = "0"  # tiles for 8 rows add in another order; ggml reads it once
    params = model_params(options, remote=remote)
    forget_errors()
    model = C.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise ModelLoadFailed(
            f"llama.cpp cannot load {path.name}: {first_error()}; see `packtrain models` for its file"
        )
    return model
