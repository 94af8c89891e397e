"""The demo model in other quantisations: models that differ in size, in hash and a little in their answers."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

#: llama.cpp's numbers of file types. The demo model is Q8_0.
TYPES = {"f16": 1, "q4-0": 2, "q4-1": 3, "q5-0": 8, "q5-1": 9, "q8-0": 7}


def quantised(folder: Path, source: Path, name: str) -> Path:
    """`source` as one of `TYPES` in `folder`, made when it is not there; takes 2 to 4 s."""
    target = folder / f"smol-{name}.gguf"
    if not target.exists():
        draft = target.with_suffix(".part")
        # In a process of its own, since llama.cpp ends its process when it fails.
        subprocess.run([sys.executable, __file__, source, draft, str(TYPES[name])], check=True, capture_output=True)
        draft.rename(target)
    return target


def _quantise(source: str, target: str, kind: int) -> int:
    from llama_cpp import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = kind
    params.allow_requantize = True
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))


if __name__ == "__main__":
    sys.exit(_quantise(sys.argv[1], sys.argv[2], int(sys.argv[3])))
