"""A short-lived process that says what this machine can run, so that neither agent nor client ever loads llama.cpp.

Prints one JSON object: the library with its features, cores, memory, model folders and what is in them; or the error
that kept the worker side from loading.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any


def report() -> dict[str, Any]:
    """What this machine has."""
    from packtrain.broker.settings import load_settings
    from packtrain.workers import machine
    from packtrain.workers.backends.llama_cpp_devices import found_devices
    from packtrain.workers.backends.llama_cpp_library import supports_rpc, system_info
    from packtrain.workers.devices import memories
    from packtrain.workers.memory_book import MemoryBook
    from packtrain.workers.node_catalog import GgufCatalog
    from packtrain.workers.node_terms import memory_budget

    settings = load_settings()
    memory = machine.memory()
    catalog = GgufCatalog(settings, lambda: memory_budget(settings, memory.total), MemoryBook(None))
    catalog.scan()
    return {
        "version": version("llama-cpp-python"),
        "rpc": supports_rpc(),
        "system_info": system_info(),
        "cores": machine.cores(),
        "devices": [device.model_dump() for device in memories(memory.total, memory.available, found_devices())],
        "memory_total": memory.total,
        "memory_free": memory.available,
        "folders": [str(folder) for folder in settings.model_folders],
        "models": sorted(catalog.models),
        "faults": [fault.model_dump() for fault in catalog.faults if fault.file != str(settings.home / "models")],
    }


def main() -> int:
    """Entry point; 0 when the worker side works."""
    from packtrain.broker.errors import SetupError

    try:
        found = report()
    except SetupError as error:
        found = {"error": str(error), "is_setup": True}
    except Exception as error:  # whatever it is, it is the finding
        found = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(found) + "\n")
    return 1 if "error" in found else 0


if __name__ == "__main__":
    sys.exit(main())
