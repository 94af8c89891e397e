"""The page of all HTTP routes: what the gateway's OpenAPI schema says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from redis import Redis

from docs.site.tables import Schema, code, fields, link_to, table, title, type_of
from packtrain.client.aio import AsyncPacktrain
from packtrain.client.gateway.app import make_app
from packtrain.client.gateway.door import Door
from packtrain.client.gateway.page_watch import Watch

#: FastAPI describes its own failures; ours have the shapes that docs/http.md shows.
_NOT_OURS = {"HTTPValidationError", "ValidationError"}
_FIRST = ("OpenAI", "Anthropic", "Ollama", "Tokens", "Packtrain", "Health")


def schema() -> dict[str, Any]:
    """The OpenAPI schema of a gateway with all its routes. No route is called, so nothing need be there behind them."""
    nobody = AsyncPacktrain("redis://127.0.0.1:1")
    return make_app(Door(nobody, files=Path(), watch=Watch(Redis(port=1)))).openapi()


def page() -> str:
    """Markdown of every route, by the API it belongs to, and of every body."""
    whole = schema()
    known = whole["components"]["schemas"]
    return "\n".join([
        "# HTTP routes\n",
        "What `/openapi.json` of every gateway says; `/docs` there lets you try it. Errors, limits and keys: "
        "[HTTP](../http.md).\n",
        *_routes(whole["paths"], known),
        "## Bodies\n",
        *_bodies(known),
    ])  # fmt: skip


def _routes(paths: Mapping[str, Mapping[str, Any]], known: Schema) -> Iterator[str]:
    routes = [(route["tags"][0], method, path, route) for path, by in paths.items() for method, route in by.items()]
    routes.sort(key=lambda found: _FIRST.index(found[0]) if found[0] in _FIRST else len(_FIRST))
    for tag, group in groupby(routes, key=lambda found: found[0]):
        yield f"## {tag}\n"
        rows = []
        for _, method, path, route in group:
            does = ". ".join(text for text in (route["summary"], route.get("description", "")) if text)
            rows.append((code(f"{method.upper()} {path}"), does, _takes(route, known)))
        yield table(("route", "does", "takes"), rows)


def _takes(route: Mapping[str, Any], known: Schema) -> str:
    asked = [each for each in route.get("parameters", []) if each["in"] != "path"]
    taken = [f"{code(each['name'])} ({type_of(each['schema'], known)})" for each in asked]
    for media, body in route.get("requestBody", {}).get("content", {}).items():
        if "$ref" in body["schema"]:
            taken.append(link_to(str(body["schema"]["$ref"]).rsplit("/", 1)[-1]))
        else:
            names = ", ".join(code(name) for name in body["schema"].get("properties", {}))
            taken.append(f"{code(media)} with {names}" if names else code(media))
    return ", ".join(taken)


def _bodies(known: Schema) -> Iterator[str]:
    for name in sorted(known.keys() - _NOT_OURS, key=title):
        yield f"### {title(name)}\n"
        yield f"{known[name].get('description', '')}\n"
        rows = [(code(key), does, sort, default) for key, sort, default, does in fields(known[name], known)]
        yield table(("field", "does", "type", "default"), rows)
