"""Where the real model is that the end-to-end tests run on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MODEL = "smollm2"


def demo_model_folder() -> Path:
    """The folder of the demo model. Without it the test is skipped here and fails in CI."""
    cache = Path(os.environ.get("PACKTRAIN_CACHE") or "~/.cache/packtrain").expanduser()
    folder = cache / "models"
    if (folder / f"{MODEL}.gguf").exists():
        return folder
    message = f"{MODEL}.gguf is not in {folder}; run `make model`"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
