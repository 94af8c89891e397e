"""All doors of a fleet that take an image and a question, each as a function with the answer.

What differs between them is how an image is written down: a path, bytes, a data: URL in one of three dialects, base64.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from typer.testing import CliRunner

from packtrain.client import Packtrain
from packtrain.client.cli.main import app
from tests.support.bulk_runs import PROGRAM, content, read_rows, write_rows
from tests.support.fleets import eventually
from tests.support.pictures import asked

#: Greedy, and no more than the longest answer about a sample.
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
_OLLAMA = {"stream": False, "options": {"temperature": 0, "num_predict": 12}}
WAIT_S = 200


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about the image in a file."""

    path: Path
    question: str

    @property
    def data(self) -> bytes:
        return self.path.read_bytes()

    @property
    def base64(self) -> str:
        return base64.b64encode(self.data).decode()

    @property
    def uri(self) -> str:
        return f"data:image/png;base64,{self.base64}"

    @property
    def text(self) -> dict[str, Any]:
        return {"type": "text", "text": self.question}

    def row(self, model: str) -> dict[str, Any]:
        """As a row of a bulk file."""
        body = {"model": model, "messages": asked(self.data, self.question), **GREEDY}
        return {"custom_id": self.path.stem, "method": "POST", "url": "/v1/chat/completions", "body": body}


class Doors:
    """The doors of one fleet.

    Args:
        fleet: Python's, over the broker.
        url: Of that broker.
        gateway: URL of its HTTP API.
        model: Who is asked.
    """

    def __init__(self, fleet: Packtrain, url: str, gateway: str, model: str) -> None:
        self._fleet = fleet
        self._env = {"PACKTRAIN_URL": url}
        self._remote = Packtrain(gateway)
        self._http = httpx2.Client(base_url=gateway, timeout=WAIT_S)
        self._model = model

    def one_by_one(self) -> dict[str, Callable[[Asked], str]]:
        """Those that take one job at a time, any number of times at once."""
        return {
            "Python, parts of a chat": self._parts,
            "Python over HTTP": self._over_http,
            "chat completions": self._chat,
            "Responses": self._responses,
            "Anthropic": self._messages,
            "Ollama, chat": self._ollama_chat,
            "Ollama, generate": self._ollama_generate,
        }

    def command_line(self, each: Asked) -> str:
        """`packtrain run`, one after the other: it writes to this process's stdout."""
        result = CliRunner().invoke(
            app,
            ["run", self._model, "--image", str(each.path), each.question, "--temperature", "0", "--max-tokens", "12"],
            env=self._env,
        )
        if result.exception:
            raise result.exception
        return result.stdout.strip()

    def bulk(self, folder: Path, questions: Sequence[Asked]) -> list[str]:
        """`packtrain bulk run`, a file of all."""
        rows, out = write_rows(folder / "in.jsonl", [each.row(self._model) for each in questions]), folder / "out.jsonl"
        subprocess.run(
            [sys.executable, "-c", PROGRAM, "bulk", "run", str(rows), "-o", str(out), "--quiet"],
            env={**os.environ, **self._env}, check=True, timeout=WAIT_S,
        )  # fmt: skip
        return _in_order(read_rows(out), questions)

    def batch(self, questions: Sequence[Asked]) -> list[str]:
        """`/v1/batches`, a batch of all."""
        rows = "".join(json.dumps(each.row(self._model)) + "\n" for each in questions).encode()
        file = self._http.post("/v1/files", files={"file": ("in.jsonl", rows)}, data={"purpose": "batch"}).json()
        wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = self._http.post("/v1/batches", json=wanted).json()
        ended = ("completed", "failed", "expired", "cancelled")

        def end() -> dict[str, Any] | None:
            now: dict[str, Any] = self._http.get(f"/v1/batches/{batch['id']}").json()
            return now if now["status"] in ended else None

        done = eventually(end, "the end of the batch", timeout_s=WAIT_S)
        assert done["status"] == "completed", done
        text = self._http.get(f"/v1/files/{done['output_file_id']}/content").text
        return _in_order([json.loads(line) for line in text.splitlines()], questions)

    def close(self) -> None:
        self._remote.close()
        self._http.close()

    def _over_http(self, each: Asked) -> str:
        return self._remote.generate(self._model, each.question, images=each.path, **GREEDY).text

    def _parts(self, each: Asked) -> str:
        turn = {"role": "user", "content": [{"type": "image_url", "image_url": each.path}, each.text]}
        return self._fleet.generate(self._model, [turn], **GREEDY).text

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._http.post(path, json={"model": self._model, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def _chat(self, each: Asked) -> str:
        body = {"messages": asked(each.data, each.question), **GREEDY}
        return str(self._post("/v1/chat/completions", body)["choices"][0]["message"]["content"])

    def _responses(self, each: Asked) -> str:
        parts = [{"type": "input_image", "image_url": each.uri}, {"type": "input_text", "text": each.question}]
        body = {"input": [{"role": "user", "content": parts}], "temperature": 0, "max_output_tokens": 12}
        return str(self._post("/v1/responses", body)["output"][0]["content"][0]["text"])

    def _messages(self, each: Asked) -> str:
        source = {"type": "base64", "media_type": "image/png", "data": each.base64}
        turn = {"role": "user", "content": [{"type": "image", "source": source}, each.text]}
        return str(self._post("/v1/messages", {"messages": [turn], **GREEDY})["content"][0]["text"])

    def _ollama_chat(self, each: Asked) -> str:
        turn = {"role": "user", "content": each.question, "images": [each.base64]}
        return str(self._post("/api/chat", {"messages": [turn], **_OLLAMA})["message"]["content"])

    def _ollama_generate(self, each: Asked) -> str:
        body = {"prompt": each.question, "images": [each.base64], **_OLLAMA}
        return str(self._post("/api/generate", body)["response"])


def _in_order(lines: Sequence[dict[str, Any]], questions: Sequence[Asked]) -> list[str]:
    found = {line["custom_id"]: content(line) for line in lines}
    return [found[each.path.stem] for each in questions]


@contextmanager
def doors(fleet: Packtrain, url: str, gateway: str, model: str) -> Iterator[Doors]:
    """The doors until the end of the block."""
    found = Doors(fleet, url, gateway, model)
    try:
        yield found
    finally:
        found.close()


def through_every_door(found: Doors, folder: Path, questions: Sequence[Asked]) -> dict[str, list[str]]:
    """All questions through all doors, all at once; the answers by door.

    Args:
        folder: For files of the bulk door.
    """
    singles = found.one_by_one()
    with ThreadPoolExecutor(2 + 4 * len(singles)) as pool:
        bulk, batch = pool.submit(found.bulk, folder, questions), pool.submit(found.batch, questions)
        # Question by question, so that one image's are computed beside each other.
        coming = {(each, name): pool.submit(door, each) for each in questions for name, door in singles.items()}
        typed = [found.command_line(each) for each in questions]
        answers = {name: [coming[each, name].result(WAIT_S) for each in questions] for name in singles}
        return {**answers, "command line": typed, "rows of bulk files": bulk.result(), "batches": batch.result()}
