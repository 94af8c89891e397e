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
    schema = {"$ref": _REF.format(model=body.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI) -> None:
    """Have `app` put those bodies into its OpenAPI page."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            bodies = [(body, "validation") for body in sorted(_described, key=lambda body: body.__name__)]
            _, found = models_json_schema(bodies, ref_template=_REF)  # type: ignore[arg-type]
            page.setdefault("components", {}).setdefault("schemas", {}).update(found.get("$defs", {}))
            app.openapi_schema = page
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
