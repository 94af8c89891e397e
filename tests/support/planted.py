"""Planted secrets: words that stand nowhere by chance, and where of a running fleet they turn up."""

from __future__ import annotations

import base64
import json
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from redis import Redis
from redis.exceptions import RedisError


@dataclass
class Planted:
    """Secrets by name, in all the forms in which they might be seen."""

    words: dict[str, str] = field(default_factory=dict)

    def plant(self, name: str, word: str = "") -> str:
        """Remember a secret; without one, make a word of the name."""
        self.words[name] = word or f"planted{name.replace(' ', '')}xq7"
        return self.words[name]

    def seen_in(self, text: str) -> set[str]:
        """Names of the secrets in a text: as they are, backwards (scripted models answer so), and in base64."""
        return {name for name, word in self.words.items() if any(form in text for form in _forms(word))}


def _forms(word: str) -> Iterator[str]:
    yield word
    yield word[::-1]
    # In the middle of other bytes it begins at any of three places; the ends depend on what stands beside it.
    for shift in range(3):
        yield base64.b64encode(b"\0" * shift + word.encode()).decode()[4 if shift else 0 : -4]


def messages_of_celery(command: str) -> str:
    """What a command carries that MONITOR has shown: its words, and the bodies of messages in it."""
    text = command.replace('\\"', '"').replace("\\\\", "\\")
    with suppress(ValueError, KeyError, TypeError):
        at = text.index('{"body"')
        message = json.JSONDecoder().raw_decode(text[at:])[0]
        text += base64.b64decode(message["body"]).decode(errors="replace")
    return text


@contextmanager
def watched(redis: Redis) -> Iterator[list[str]]:
    """All commands of the time of the block that are not about keys of ours: Celery's queues, channels and events."""
    heard: list[str] = []
    ending = threading.Event()
    begun = threading.Event()

    def listen() -> None:
        with suppress(RedisError, OSError, ValueError), redis.monitor() as monitor:  # type: ignore[no-untyped-call]
            begun.set()
            while not ending.is_set():
                command = str(monitor.next_command()["command"])
                words = command.split(" ", 4)
                if not "".join(words[3:4] if words[0] == "EVALSHA" else words[1:2]).startswith("pt:"):
                    heard.append(messages_of_celery(command))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert begun.wait(10)
    try:
        yield heard
    finally:
        ending.set()
        with suppress(RedisError):
            redis.ping()  # what it hears last
        thread.join(5)


def keys_of(redis: Redis, *, without: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Every key but those that begin so, and all that it holds."""
    leaving = tuple(without)
    for key in map(str, redis.scan_iter(count=1000)):
        if not key.startswith(leaving):
            kind = str(redis.type(key))
            readers: dict[str, Callable[[str], Any]] = {
                "string": redis.get, "hash": redis.hgetall, "stream": redis.xrange,
                "list": lambda k: redis.lrange(k, 0, -1), "set": redis.smembers,
                "zset": lambda k: redis.zrange(k, 0, -1),
            }  # fmt: skip
            yield key, f"{key} {readers[kind](key)}"


def files_of(home: Path) -> Iterator[tuple[Path, str]]:
    """Every file of a home, and its bytes as text."""
    for path in sorted(home.rglob("*")):
        with suppress(OSError):
            if path.is_file():
                yield path, path.read_bytes().decode("latin-1")


def is_open_to_others(path: Path, top: Path) -> bool:
    """Whether other users may read a file below `top`: neither its mode nor that of a folder on the way keeps them."""
    folders = [folder for folder in path.parents if folder.is_relative_to(top)]
    return bool(path.stat().st_mode & 0o044) and all(folder.stat().st_mode & 0o011 for folder in folders)


def processes_of(pids: Iterable[int]) -> Iterator[tuple[str, str, str]]:
    """These processes and all below them: name, arguments, environment."""
    for pid in pids:
        with suppress(psutil.Error):
            top = psutil.Process(pid)
            for process in [top, *top.children(recursive=True)]:
                with suppress(psutil.Error):
                    arguments = " ".join(process.cmdline())
                    yield arguments[-60:], arguments, "\n".join(f"{k}={v}" for k, v in process.environ().items())


def page(url: str, *, login: str = "", key: str = "") -> str:
    """What stands at a URL."""
    request = urllib.request.Request(url)
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(answer.read().decode(errors="replace"))
