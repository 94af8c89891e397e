"""A short-lived process that asks the llama.cpp library what it is, so that agent and `doctor` never load it.

Prints one JSON object: version, RPC support, CPU features, or the error that kept the library from loading.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version


def main() -> int:
    """Entry point; 0 when the library works."""
    try:
        from packtrain.workers.backends.llama_cpp_backend import supports_rpc, system_info

        report = {"version": version("llama-cpp-python"), "rpc": supports_rpc(), "system_info": system_info()}
    except (ImportError, OSError, RuntimeError, PackageNotFoundError) as error:
        report = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if "error" in report else 0


if __name__ == "__main__":
    sys.exit(main())
