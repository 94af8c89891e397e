"""How a job's prompt begins, as a few hashes: so that a claim can prefer jobs whose beginning an instance holds.

The text of the prompt is hashed up to 256, 512, 1024 ... characters, each hash over everything before it. Two jobs that
share the hash of 1024 characters share these characters. Hashes, not tokens, because whoever submits has no tokenizer,
and not text, because it lies beside the job in Redis and is looked at in a script. Of a prompt that is given in tokens
their ids are hashed, 4 bytes each; that a text has the same tokens the hint does not know.
"""

from __future__ import annotations

import hashlib
import sys
from array import array

from packtrain.broker.chat import Message
from packtrain.broker.job_spec import JobSpec
from packtrain.broker.media import split_at

#: Characters, or bytes of ids, of the shortest prefix: some 60 tokens, which take longer to compute than to copy.
SHORTEST = 256


def prefix_hashes(spec: JobSpec) -> tuple[str, ...]:
    """Hashes of the beginnings of the prompt, shortest first; () for a short one, and where nothing is kept."""
    if spec.kind in ("count", "embed"):
        return ()
    prompt = _ids(spec.prompt_tokens) if spec.prompt_tokens else _text(spec)
    # What was computed with other adapters is of no use, however alike the texts are.
    kind = "".join((spec.kind, *(f"\0{name}\0{scale}" for name, scale in sorted(spec.adapters.items()))))
    state, done, hashes = hashlib.blake2b(kind.encode(), digest_size=4), 0, list[str]()
    length = SHORTEST
    while length <= len(prompt):
        part = prompt[done:length]
        state.update(part.encode() if isinstance(part, str) else part)
        hashes.append(state.hexdigest())
        done, length = length, length * 2
    return tuple(hashes)


def _text(spec: JobSpec) -> str:
    if spec.kind == "complete":
        return spec.prompt
    tools = [tool.model_dump_json() for tool in spec.tools]  # templates put them before the turns
    return "\0".join((*tools, *(f"{m.role}\0{_content(m)}" for m in spec.messages)))


def _content(message: Message) -> str:
    return "".join(
        piece if isinstance(piece, str) else f"\0{piece.sha256}" for piece in split_at(message.content, message.media)
    )


def _ids(tokens: tuple[int, ...]) -> bytes:
    ids = array("i", tokens)
    if sys.byteorder != "little":
        ids.byteswap()
    return ids.tobytes()
