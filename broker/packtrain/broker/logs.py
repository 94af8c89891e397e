"""Logging of our processes: one line per decision, to stderr, readable with or without a supervisor's prefix."""

from __future__ import annotations

import logging
import sys


def configure(level: str) -> None:
    """Log to stderr at `level`. Third parties speak from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("packtrain").setLevel(level)
