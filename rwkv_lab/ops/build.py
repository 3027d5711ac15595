"""Compiles csrc/ into the two kernel libraries, once per machine, and finds them again.

A library is built in a directory of its own and renamed into place, so that nobody ever sees half of one: parallel
first uses and killed builds are harmless with or without the lock, which only saves the second process the work. The
lock is one of the operating system, gone with the process that held it. `python -m rwkv_lab.ops.build` builds ahead
of first use.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from rwkv_lab.config.errors import UserError, main_guard

Kind = Literal["cpu", "cuda", "bench"]

CSRC = Path(__file__).parents[2] / "csrc"
KERNELS = ("wkv_kernels.h", "wkv_math.h", "wkv_split.h")
HEADERS = {
    "cpu": ("checks.h", "lanes.h", "wkv_cpu.h", "wkv_math.h"),
    "bench": KERNELS,
    "cuda": (*KERNELS, "checks.h", "wkv_backward.h", "wkv_cuda.h", "wkv_forward.h", "wkv_segments.h"),
}
# no -ffast-math: it would switch denormal numbers off in the whole process
CXX_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fvisibility=hidden", "-Wno-psabi")
# the oldest torch whose stable interface is used
BIND_FLAGS = ("-DTORCH_TARGET_VERSION=0x020b000000000000",)
NVCC_FLAGS = ("-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-Xptxas", "-v")
LOCK_SECONDS = 300.0
ABANDONED_SECONDS = 3600.0


class BuildFailed(Exception):
    """Why a kernel library could not be built: one line."""


@dataclass(frozen=True)
class Recipe:
    """What goes into a library: the flags of each source, by compiler, and of the link."""

    kind: Kind
    cxx: dict[str, tuple[str, ...]]
    nvcc: dict[str, tuple[str, ...]]
    link: tuple[str, ...]


def recipe(kind: Kind, arch: str = "sm_90") -> Recipe:
    """The recipe of the CPU library for this processor, or of the CUDA or the benchmark's library for `arch`."""
    package = importlib.util.find_spec("torch")
    if package is None or package.origin is None:
        raise BuildFailed("torch is not installed")
    root = Path(package.origin).parent
    bind = (*CXX_FLAGS, *BIND_FLAGS, "-isystem", str(root / "include"))
    link = ("-shared", f"-L{root / 'lib'}", "-ltorch_cpu")
    if kind == "cpu":
        return Recipe(kind, {"wkv_cpu.cpp": (*CXX_FLAGS, "-march=native"), "bind_cpu.cpp": bind}, {}, link)
    return Recipe(kind, {"bind_cuda.cpp": (*bind, "-DUSE_CUDA")}, {"wkv_cuda.cu": (*NVCC_FLAGS, f"-arch={arch}")}, link)


def processor() -> str:
    """What -march=native depends on: the feature list of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.system()} {platform.machine()} {features}"


def key(made: Recipe) -> str:
    """Names a library by all that shapes it: sources, flags, torch version, processor."""
    digest = hashlib.sha256(f"{importlib.metadata.version('torch')}\n{processor()}\n{made}\n".encode())
    for name in (*HEADERS[made.kind], *made.cxx, *made.nvcc):
        digest.update(name.encode() + (CSRC / name).read_bytes())
    return digest.hexdigest()[:16]


def default_cache() -> Path:
    """Where libraries are kept between processes."""
    return Path.home() / ".cache" / "rwkv_lab" / "ops"


def find_tools(made: Recipe) -> tuple[str, str, str]:
    """Paths of ninja, the C++ compiler and (for a CUDA library) nvcc."""
    cxx = next((found for name in ("g++", "c++", "clang++") if (found := shutil.which(name))), None)
    if cxx is None:
        raise BuildFailed("no C++ compiler (g++, c++ or clang++) on PATH")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin") or ""
    if made.nvcc and not nvcc:
        raise BuildFailed("no nvcc on PATH or in /usr/local/cuda/bin")
    ninja = shutil.which("ninja")
    if ninja is None:
        import ninja as package

        ninja = str(Path(package.BIN_DIR) / "ninja")
    return ninja, cxx, nvcc


def escape(text: str) -> str:
    """`text` as a value in a ninja file."""
    return text.replace("$", "$$")


def ninja_file(made: Recipe, cxx: str, nvcc: str) -> str:
    """The build in ninja's words; the library is called out.so."""
    linker = nvcc if made.nvcc else cxx
    rules = ["rule compile", "  command = $tool $flags -c $in -o $out"]
    rules += ["rule link", f"  command = {linker} $in {escape(shlex.join(made.link))} -o $out"]
    objects = []
    for tool, sources in ((cxx, made.cxx), (nvcc, made.nvcc)):
        for name, flags in sources.items():
            objects.append(f"{name}.o")
            path = escape(str(CSRC / name)).replace(" ", "$ ").replace(":", "$:")
            rules += [f"build {name}.o: compile {path}", f"  tool = {tool}", f"  flags = {escape(shlex.join(flags))}"]
    return "\n".join([*rules, f"build out.so: link {' '.join(objects)}", ""])


def sweep(cache: Path) -> None:
    """Removes the directories of builds that were killed long ago."""
    for path in cache.glob("building-*"):
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def compile_into(target: Path, made: Recipe) -> None:
    """Builds in a fresh directory beside `target`, then puts the library in its place in one step."""
    ninja, cxx, nvcc = find_tools(made)
    work = Path(tempfile.mkdtemp(prefix="building-", dir=target.parent))
    try:
        (work / "build.ninja").write_text(ninja_file(made, cxx, nvcc))
        done = subprocess.run([ninja, "-C", str(work)], capture_output=True, text=True)
        (work / "log").write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            complaint = next((line for line in done.stdout.splitlines() if "error" in line), done.stdout.strip()[-200:])
            raise BuildFailed(f"{Path(cxx).name} failed on {made.kind} kernels: {complaint.strip()}")
        with open(work / "out.so", "rb") as built:
            os.fsync(built.fileno())
        os.replace(work / "log", target.with_suffix(".log"))
        os.replace(work / "out.so", target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def library(kind: Kind, arch: str = "sm_90", cache: Path | None = None, lock_seconds: float = LOCK_SECONDS) -> Path:
    """Path of the built library, building it if need be.

    Raises BuildFailed without a compiler, with one that fails, or where the cache cannot be written.
    """
    made = recipe(kind, arch)
    cache = cache or default_cache()
    target = cache / f"wkv_{kind}-{key(made)}.so"
    if target.exists():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_suffix(".lock"))
        # whoever cannot get the lock builds beside the one who has it
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=lock_seconds)
        try:
            if not target.exists():
                sweep(cache)
                compile_into(target, made)
        finally:
            lock.release()
    except OSError as error:
        raise BuildFailed(f"cannot write the kernel cache {cache}: {error.strerror}") from error
    return target


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rwkv_lab.ops.build", description="Builds the kernels ahead of use."
    )
    parser.add_argument("--cache", type=Path, help="directory of the built libraries")
    cache = parser.parse_args().cache
    import torch

    kinds: list[tuple[Kind, str]] = [("cpu", "")]
    if torch.cuda.is_available():
        kinds.append(("cuda", "sm_{}{}".format(*torch.cuda.get_device_capability())))
    for kind, arch in kinds:
        try:
            print(f"{kind}: {library(kind, arch, cache)}")
        except BuildFailed as failure:
            raise UserError(f"the {kind} kernels cannot be built: {failure}") from failure
    return 0


if __name__ == "__main__":
    raise SystemExit(main_guard(main))
