"""The page of all settings: every `PACKTRAIN_...` variable, and every key of packtrain.toml."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic_settings import BaseSettings

from docs.site.tables import code, fields, table, title
from packtrain.workers.catalog_config import CatalogConfig

ROOT = Path(__file__).resolve().parents[2]
_CLASS = re.compile(r"^class (\w+)\(BaseSettings\)", re.MULTILINE)
#: The broker of the whole fleet first, as most of them are there.
_SOURCES = ("broker", "client", "workers")


def page() -> str:
    """Markdown of both."""
    return "\n".join([
        "# Settings\n",
        "Read once at the start of a process, from its environment; a wrong value stops it and names the variable. "
        "An option of the command line, where there is one, goes before the variable.\n",
        *_variables(),
        *_toml(),
    ])  # fmt: skip


def settings_classes() -> list[type[BaseSettings]]:
    """Every class of settings in the three packages, found by its source, so that a new one is never forgotten."""
    found = []
    for root in _SOURCES:
        for file in sorted((ROOT / root / "packtrain").rglob("*.py")):
            for name in _CLASS.findall(file.read_text()):
                module = ".".join(file.relative_to(ROOT / root).with_suffix("").parts)
                found.append(getattr(importlib.import_module(module), name))
    return found


def variables() -> list[str]:
    """The name of every variable."""
    return [f"{_prefix(kind)}{name}".upper() for kind in settings_classes() for name in kind.model_fields]


def _prefix(kind: type[BaseSettings]) -> str:
    return str(kind.model_config.get("env_prefix", ""))


def _variables() -> Iterator[str]:
    for kind in settings_classes():
        schema = kind.model_json_schema()
        rows = [
            (code(f"{_prefix(kind)}{name}".upper()), explained, sort, default)
            for name, sort, default, explained in fields(schema, schema.get("$defs", {}))
        ]
        yield f"## {_prefix(kind)}...\n"
        yield f"{(kind.__doc__ or '').strip()}\n"
        yield table(("variable", "does", "type", "default"), rows)


#: What stands where in the file. A section that is not here is shown by what it is called in the code.
_PLACES = {
    "Defaults": "[defaults]",
    "ModelOptions": "[models.NAME]",
    "AdapterOptions": "[models.NAME.adapters] ADAPTER = {...}",
    "ReplicaOptions": "[models.NAME] replicas = {...}",
    "RemoteOptions": "[models.NAME.remote]",
    "AliasOptions": "[aliases.NAME]",
}


def _toml() -> Iterator[str]:
    known = CatalogConfig.model_json_schema()["$defs"]
    shared = known["Defaults"]["properties"].keys()
    yield "## packtrain.toml\n"
    yield (
        "An optional file in the home of a node, read when the node starts; a mistake in it stops the node and names "
        "the key. [Models](../models.md) shows one. Each key of `[defaults]` may stand in `[models.NAME]`, too.\n"
    )
    for name in [*_PLACES, *(known.keys() - _PLACES.keys())]:
        section = known[name]
        if "properties" in section:
            yield f"### {title(name)}\n"
            yield f"{code(_PLACES.get(name, ''))} {section.get('description', '')}\n"
            rows = [
                (code(key), explained.replace("null:", "left out:"), sort, default)
                for key, sort, default, explained in fields(section, known)
                if name != "ModelOptions" or key not in shared
            ]
            yield table(("key", "does", "type", "default"), rows)
