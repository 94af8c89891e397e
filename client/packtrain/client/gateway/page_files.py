"""The fleet page's files, at the gateway's root: HTML, modules and a style sheet that hold no secret and no fact.

The page asks for everything it shows over the API, with the key of who looks, so anybody may have its files. They come
from a fixed table, so no path of a request is ever looked up on disk. The content security policy allows scripts from
here alone and no HTML made of strings (`require-trusted-types-for`): what a model or a user is called stays text.

At `/` there are two answers. Browsers get the page; all others the line by which Ollama's clients know a server.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
}
#: What Ollama's clients look for; it is Packtrain that answers.
GREETING = "Ollama is running"


def add_page(app: FastAPI) -> None:
    """Serve the page."""
    folder = resources.files(__package__) / "page"
    files = {path: entry.read_bytes() for path, entry in _walk(folder)}
    policy = policy_of(files["index.html"].decode())

    @app.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        if wants_page(request.headers.get("accept", "")):
            return _answer(request, "index.html", files["index.html"], policy)
        return PlainTextResponse(GREETING, headers={"Vary": "Accept"})

    def serve(path: str, content: bytes) -> None:
        async def file(request: Request) -> Response:
            return _answer(request, path, content, policy)

        app.add_api_route(f"/page/{path}", file, include_in_schema=False)

    for path, content in files.items():
        serve(path, content)


def wants_page(accept: str) -> bool:
    """True for a browser: it names HTML, and does not put it behind everything else.

    >>> wants_page("text/html,application/xhtml+xml,*/*;q=0.8"), wants_page("*/*"), wants_page("application/json")
    (True, False, False)
    """
    for part in accept.lower().split(","):
        kind, *options = [piece.strip() for piece in part.split(";")]
        if kind == "text/html":
            return not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", option) for option in options)
    return False


def policy_of(html: str) -> str:
    """The content security policy of a page: its only inline script is its import map, allowed by its hash."""
    inline = re.findall(r"<script type=\"importmap\">(.*?)</script>", html, re.DOTALL)
    hashes = "".join(f" 'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in inline)
    return (
        f"default-src 'none'; script-src 'self'{hashes}; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    )


def _answer(request: Request, path: str, content: bytes, policy: str) -> Response:
    tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",  # ask each time; the answer is 304 until the next version
        "ETag": tag,
        "Vary": "Accept",
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_TYPES["." + path.rpartition(".")[2]], headers=headers)


def _walk(folder: Traversable, prefix: str = "") -> list[tuple[str, Traversable]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _walk(entry, f"{prefix}{entry.name}/")
        elif "." + entry.name.rpartition(".")[2] in _TYPES:
            found.append((prefix + entry.name, entry))
    return found
