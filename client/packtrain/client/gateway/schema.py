"""The OpenAPI page: bodies that we read ourselves, so that every failure has one shape, are described by hand."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/{model}"
_described: set[type[BaseModel]] = set()


def takes(body: type[BaseModel]) -> dict[str, Any]:
    """A route's description of the body it takes."""
    _described.add(body)
    schema = {"$ref": _provisional(body)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI) -> None:
    """Have `app` put those bodies into its OpenAPI page."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            bodies = [(body, "validation") for body in sorted(_described, key=lambda body: body.__name__)]
            refs, found = models_json_schema(bodies, ref_template=_REF)  # type: ignore[arg-type]
            page.setdefault("components", {}).setdefault("schemas", {}).update(found.get("$defs", {}))
            _settle(page, {_provisional(body): refs[body, "validation"]["$ref"] for body in _described})
            app.openapi_schema = page
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _provisional(body: type[BaseModel]) -> str:
    """A reference until all bodies are known: pydantic calls two of one name by their modules."""
    return f"{body.__module__}.{body.__qualname__}"


def _settle(page: dict[str, Any], names: dict[str, str]) -> None:
    for routes in page["paths"].values():
        for route in routes.values():
            for content in route.get("requestBody", {}).get("content", {}).values():
                if ref := names.get(content["schema"].get("$ref", "")):
                    content["schema"] = {"$ref": ref}
