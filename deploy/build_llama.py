"""Builds the wheel of llama-cpp-python once, with RPC support, and keeps it outside the checkout.

    python deploy/build_llama.py              build it if it is not there; the last line of stdout is its path
    python deploy/build_llama.py --print-key  what would be built, as one word
    python deploy/build_llama.py --check      is the llama.cpp that is installed the right one?

PyPI holds the source only, so every machine compiles it, and pip's own cache would hand out a wheel that was built with
other CMAKE_ARGS. So finished wheels lie in folders named by a key of everything that went into them:

    <cache>/wheels/0.3.36-x86_64-rpc-1f2e3d4c/    one wheel, and build.json, which names what the key stands for

llama.cpp is compiled for the CPU it is built on (GGML_NATIVE), so the CPU's features are part of the key, and a cache
in a home folder that several machines share never ends in an illegal instruction. LLAMA_CMAKE_ARGS adds flags; with
-DGGML_NATIVE=OFF in it the CPU does not count. Standard library only.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

PACKAGE = "llama-cpp-python"
PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
CMAKE_ARGS = "-DGGML_RPC=ON"
HEARTBEAT_S = 30.0
TAIL_LINES = 30
#: Variables that compilers and CMake obey by themselves.
COMPILER_VARIABLES = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS")
#: Lines of /proc/cpuinfo that decide what `-march=native` means, on x86, Arm and RISC-V. A kernel older than the CPU
#: lacks names of features, so the model counts too.
CPU_LINES = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features", "isa")

#: What went wrong, by what the log says of it, first match first.
REMEDIES = (
    (r"No space left on device", "free some disk space (the build needs 2 GB), or set PACKTRAIN_CACHE to another disk"),
    (
        r"Killed signal|terminated program cc1plus|virtual memory exhausted|[Oo]ut of memory",
        "memory ran out: try again with CMAKE_BUILD_PARALLEL_LEVEL=1",
    ),
    (
        r"CMAKE_(C|CXX)_COMPILER not set|No CMAKE_(C|CXX)_COMPILER|is not able to compile|(\+\+|gcc).*not found",
        "the C++ compiler is missing or broken: apt-get install g++ (macOS: xcode-select --install)",
    ),
    (
        r"CMAKE_MAKE_PROGRAM|Could NOT find CMake|CMake [\d.]+ or higher is required|Missing.*(cmake|ninja|make)",
        "build tools are missing or too old: apt-get install cmake make",
    ),
    (
        r"No matching distribution|NewConnectionError|NameResolutionError|ReadTimeout|SSLError",
        "the package index cannot be reached: check the network and pip's settings (`pip config debug`)",
    ),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what comes out of a build."""

    version: str
    system: str  # `linux`, `darwin`
    machine: str  # `x86_64`, `arm64`
    libc: str  # a wheel built against a newer one does not load
    cmake_args: str
    compiler: Mapping[str, str]  # those of COMPILER_VARIABLES that are set
    cpu: tuple[str, ...]  # features; empty when the build is not for this CPU alone

    @property
    def key(self) -> str:
        """Name of the folder: readable, and another one when anything differs."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.version}-{self.machine}-rpc-{digest[:8]}"


class BuildFailed(Exception):
    """The wheel cannot be made; the message ends with the remedy."""


def pinned_version(pyproject: str) -> str:
    """The version that pyproject.toml pins, which is the only place that names it."""
    extras = tomllib.loads(pyproject)["project"]["optional-dependencies"]
    requirements: list[str] = [line for lines in extras.values() for line in lines]
    pins = {line.removeprefix(f"{PACKAGE}==") for line in requirements if line.startswith(PACKAGE)}
    if len(pins) != 1 or not re.fullmatch(r"[\d.]+", min(pins)):
        raise BuildFailed(f"pyproject.toml must pin {PACKAGE} with == in one place")
    return min(pins)


def is_native(cmake_args: str) -> bool:
    """True when these flags build for the CPU of this machine, which is llama.cpp's default."""
    values = re.findall(r"^-DGGML_NATIVE(?::BOOL)?=(.*)$", "\n".join(shlex.split(cmake_args)), re.MULTILINE)
    return not values or values[-1].upper() not in {"OFF", "0", "NO", "FALSE", "N"}


def cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """What /proc/cpuinfo says of the instructions of all cores together, sorted."""
    features = set()
    for line in cpuinfo.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name in ("flags", "Features"):
            features.update(value.split())
        elif name in CPU_LINES:
            features.add(f"{name}={value}")
    return tuple(sorted(features))


def remedy(log: str) -> str:
    """What to do about the failure that this log ends with."""
    return next((advice for pattern, advice in REMEDIES if re.search(pattern, log)), "see the log above for the cause")


def duration(seconds: float) -> str:
    """`45 s`, `6 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def finished_wheel(folder: Path) -> Path | None:
    """The wheel in `folder` if build.json vouches for its bytes, else None."""
    try:
        build = json.loads((folder / "build.json").read_text())
        wheel = folder / str(build["wheel"])
        return wheel if sha256(wheel) == build["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def describe(recipe: Recipe, wheel: Path, **facts: object) -> dict[str, object]:
    """The content of build.json."""
    built = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "key": recipe.key, "wheel": wheel.name, "sha256": sha256(wheel), "built": built, **facts, **asdict(recipe)
    }  # fmt: skip


def sha256(path: Path) -> str:
    """Checksum of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_recipe(environ: Mapping[str, str]) -> Recipe:
    """The recipe of this machine and this environment."""
    cmake_args = f"{CMAKE_ARGS} {environ.get('LLAMA_CMAKE_ARGS', '')}".strip()
    return Recipe(
        version=pinned_version(PYPROJECT.read_text()),
        system=platform.system().lower(),
        machine=platform.machine(),
        libc=_libc(),
        cmake_args=cmake_args,
        compiler={name: environ[name] for name in COMPILER_VARIABLES if environ.get(name)},
        cpu=_local_cpu() if is_native(cmake_args) else (),
    )


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where wheels and models are kept between checkouts."""
    return Path(environ.get("PACKTRAIN_CACHE") or "~/.cache/packtrain").expanduser().absolute()


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except ValueError:  # musl, macOS
        return ""


def _local_cpu() -> tuple[str, ...]:
    try:
        return cpu_features(Path("/proc/cpuinfo").read_text())
    except OSError:
        names = ["machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features"]
        found = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, check=False)
        return tuple(sorted(found.stdout.split())) or (platform.processor(),)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` alone; says so when somebody else has it. The kernel frees it however the holder ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another build of the same wheel is under way; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(recipe: Recipe, wheels: Path, python: str) -> Path:
    """The wheel of `recipe`, from `wheels` or built with the pip of `python`, which takes minutes.

    Raises:
        BuildFailed: With the end of the log printed, and a remedy.
    """
    folder = wheels / recipe.key
    wheels.mkdir(parents=True, exist_ok=True)
    with _locked(wheels / f".{recipe.key}.lock"):
        if wheel := finished_wheel(folder):
            return wheel
        _need_compiler(recipe.compiler)
        draft = wheels / f".{recipe.key}.draft"
        shutil.rmtree(draft, ignore_errors=True)  # of a build that was killed
        (draft / "tmp").mkdir(parents=True)
        log = wheels / f"{recipe.key}.log"
        try:
            seconds = _compile(recipe, python, draft, log)
            shutil.rmtree(draft / "tmp")
            (wheel,) = draft.glob("*.whl")
            facts = describe(recipe, wheel, seconds=round(seconds), python=platform.python_version())
            (draft / "build.json").write_text(json.dumps(facts, indent=2) + "\n")
            shutil.rmtree(folder, ignore_errors=True)  # damaged, or finished_wheel would have found it
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        _say(f"built in {duration(seconds)}: {folder / wheel.name}")
        return folder / wheel.name


def _need_compiler(compiler: Mapping[str, str]) -> None:
    for variable, names in {"CC": ("cc", "gcc", "clang"), "CXX": ("c++", "g++", "clang++")}.items():
        wanted = shlex.split(compiler.get(variable, ""))[:1] or names
        if not any(map(shutil.which, wanted)):
            raise BuildFailed(
                f"no compiler found (looked for {', '.join(wanted)}); "
                "apt-get install g++ cmake make (macOS: xcode-select --install)"
            )


def _compile(recipe: Recipe, python: str, draft: Path, log: Path) -> float:
    """Run pip; the wheel is in `draft` afterwards. Returns the seconds it took."""
    _say(
        f"building {PACKAGE} {recipe.version} with {recipe.cmake_args}: once per machine, 5 to 7 minutes on 2 cores\n"
        f"  log: {log}"
    )
    env = {
        "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
        **os.environ,
        "CMAKE_ARGS": recipe.cmake_args,
        "TMPDIR": str(draft / "tmp"),
    }
    command = [
        python, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-cache-dir", "--no-binary", PACKAGE,
        "--wheel-dir", str(draft), f"{PACKAGE}=={recipe.version}",
    ]  # fmt: skip
    begun = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while (code := _wait(process)) is None:
                _say(f"  {duration(time.monotonic() - begun)}{progress(_tail(log))}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        tail = _tail(log)
        _say("\n".join(f"  | {line}" for line in tail.splitlines()[-TAIL_LINES:]))
        raise BuildFailed(f"the build of {PACKAGE} failed (log: {log}); {remedy(tail)}")
    return time.monotonic() - begun


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(HEARTBEAT_S)
    except subprocess.TimeoutExpired:
        return None


def progress(log: str) -> str:
    """How far the compiler is, as Ninja (`[12/340]`) or Make (`[ 23%]`) last said it; empty when they have not yet."""
    steps = re.findall(r"^\s*\[\s*(\d+/\d+|\d+%)\]", log, re.MULTILINE)
    return f", compiled {steps[-1].replace('/', ' of ')}" if steps else ""


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 64 * 1024))
        return file.read().decode(errors="replace")


def check(recipe: Recipe, python: str) -> None:
    """Load what is installed beside `python` in a process of its own, for a wrong one dies of SIGILL.

    Raises:
        BuildFailed: It does not load, is another version, or has no RPC.
    """
    code = "import llama_cpp; print(llama_cpp.__version__, llama_cpp.llama_cpp.llama_supports_rpc())"
    done = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGILL:
        raise BuildFailed(
            "llama.cpp died of an illegal instruction, so it was built for another CPU; "
            "run `make clean setup`, or set LLAMA_CMAKE_ARGS=-DGGML_NATIVE=OFF"
        )
    last = (done.stderr.strip() or "no message").splitlines()[-1]
    if done.returncode:
        raise BuildFailed(f"llama.cpp does not load (exit {done.returncode}: {last}); run `make clean setup`")
    if done.stdout.split() != [recipe.version, "True"]:
        raise BuildFailed(
            f"the llama.cpp that is installed is not ours: version and RPC support are {done.stdout.strip()}, "
            f"wanted {recipe.version} True; run `make clean setup`"
        )


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # so that `finally` ends the compiler and removes the draft


def main() -> int:
    """Entry point; 0 when the wheel is there, or the check holds."""
    parser = argparse.ArgumentParser(description="Build the wheel of llama-cpp-python, once.")
    parser.add_argument("--python", default=sys.executable, help="interpreter whose pip builds; default: this one")
    parser.add_argument("--print-key", action="store_true", help="print the key of the build and do nothing")
    parser.add_argument("--check", action="store_true", help="check the llama.cpp that is installed, build nothing")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    try:
        recipe = local_recipe(os.environ)
        if options.print_key:
            print(recipe.key)
        elif options.check:
            check(recipe, options.python)
        else:
            print(build(recipe, cache_folder(os.environ) / "wheels", options.python))
    except (BuildFailed, OSError) as error:
        _say(f"build_llama: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
