"""Compiles csrc/ into the two kernel libraries, once per machine, and finds them again.

`python -m rwkv_lab.ops.build` builds ahead of first use; with `--arch 80,90` also where no card is visible.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.ops import cache as store
from rwkv_lab.ops.toolchain import BuildFailed, Nvcc, find_cxx, find_ninja, find_nvcc, major
from rwkv_lab.util.paths import CSRC
from rwkv_lab.util.subprocesses import end_with_parent

Kind = Literal["cpu", "cuda"]

PREBUILT = Path(__file__).parent / "prebuilt"
# no -ffast-math: it would switch denormal numbers off in the whole process
CXX_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fvisibility=hidden", "-Wno-psabi")
# the oldest torch whose stable interface is used
BIND_FLAGS = ("-DTORCH_TARGET_VERSION=0x020b000000000000",)
NVCC_FLAGS = ("-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-Xptxas", "-v")
# Takes the place of libtorch_cuda beside a torch without CUDA, so that the library asks for it all the same.
STUB = 'extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n'
NOTICE_SECONDS = 2.0
LOCK_SECONDS = 120.0
BUILD_SECONDS = 300.0
ENDING_SECONDS = 5.0


@dataclass(frozen=True)
class Recipe:
    """What goes into a library: sources with their flags, by compiler, and the libraries it needs of torch."""

    name: str
    cxx: Mapping[Path, tuple[str, ...]]
    nvcc: Mapping[Path, tuple[str, ...]]
    torch_libraries: tuple[str, ...] = ()
    cuda: str | None = None  # the CUDA release torch was built for; None: without CUDA


def recipe(kind: Kind, arch: str = "sm_90", cuda: str | None = None) -> Recipe:
    """The recipe of the CPU library for this processor, or of the CUDA library for ``arch``."""
    bind = (*CXX_FLAGS, *BIND_FLAGS)
    if kind == "cpu":
        sources = {CSRC / f"{name}.cpp": (*CXX_FLAGS, "-march=native") for name in ("wkv_cpu", "decode_cpu")}
        sources |= {CSRC / f"{name}.cpp": bind for name in ("bind_cpu", "bind_decode")}
        return Recipe("wkv_cpu", sources, {}, ("torch_cpu",))
    binding = {CSRC / "bind_cuda.cpp": (*bind, "-DUSE_CUDA")}
    kernels = {CSRC / "wkv_cuda.cu": (*NVCC_FLAGS, f"-arch={arch}")}
    return Recipe(f"wkv_cuda-{arch}", binding, kernels, ("torch_cuda", "torch_cpu"), cuda)


def torch_folder() -> Path:
    """Where torch's headers and libraries are."""
    package = importlib.util.find_spec("torch")
    if package is None or package.origin is None:
        raise BuildFailed("torch is not installed")
    return Path(package.origin).parent


def processor() -> str:
    """What -march=native depends on: the feature list of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.system()} {platform.machine()} {features}"


def key(made: Recipe, torch_version: str | None = None) -> str:
    """Names a library by all that shapes it but nvcc: sources, flags, torch and CUDA versions, processor."""
    version = torch_version or importlib.metadata.version("torch")
    native = any("-march=native" in flags for flags in made.cxx.values())
    about = [version, made.cuda or "", processor() if native else platform.machine(), *made.torch_libraries]
    digest = hashlib.sha256("\n".join(about).encode())
    sources = {**made.cxx, **made.nvcc}
    try:
        for path in (*sources, *sorted({header for source in sources for header in source.parent.glob("*.h")})):
            digest.update(f"{path.name} {sources.get(path)}".encode() + path.read_bytes())
    except OSError as error:
        raise BuildFailed(f"{error.filename}: {error.strerror}") from error
    return digest.hexdigest()[:16]


def ninja_file(made: Recipe, cxx: str, nvcc: Nvcc | None) -> str:
    """The build in ninja's words; the library is called as the cache expects it."""
    root = torch_folder()
    compilers = {"cxx": [cxx, "-isystem", str(root / "include")]}
    link = ["-shared", f"-L{root / 'lib'}", "-L."]
    if nvcc is not None:
        compilers["nvcc"] = [str(nvcc.path), "-ccbin", cxx]
        link += [f"-L{nvcc.libraries}"] if nvcc.libraries else []
    rules = []
    for name, command in compilers.items():
        rules += [f"rule {name}", f"  command = {_escape(shlex.join(command))} $flags -c $in -o $out"]
    linker = compilers["nvcc"] if nvcc else [cxx]
    libraries = " ".join(f"-l{name}" for name in made.torch_libraries)
    rules += ["rule link", f"  command = {_escape(shlex.join([*linker, *link]))} $in {libraries} -o $out"]
    rules += ["rule stub", f"  command = {_escape(shlex.quote(cxx))} -shared -Wl,-soname,$out $in -o $out"]
    objects, needed = [], []
    for tool, sources in (("cxx", made.cxx), ("nvcc", made.nvcc)):
        for path, flags in sources.items():
            objects.append(f"{path.name}.o")
            rules += [f"build {path.name}.o: {tool} {_path(path)}", f"  flags = {_escape(shlex.join(flags))}"]
    for library in made.torch_libraries:
        if not (root / "lib" / f"lib{library}.so").exists():
            needed.append(f"lib{library}.so")
            rules.append(f"build lib{library}.so: stub stub.cpp")
    after = f" | {' '.join(needed)}" if needed else ""
    return "\n".join([*rules, f"build {store.LIBRARY}: link {' '.join(objects)}{after}", ""])


def _escape(text: str) -> str:
    return text.replace("$", "$$")


def _path(path: Path) -> str:
    return _escape(str(path)).replace(" ", "$ ").replace(":", "$:")


def say(text: str) -> None:
    """Print a line for who waits."""
    print(text, file=sys.stderr, flush=True)


def run_ninja(ninja: str, work: Path, name: str, seconds: float, note: Callable[[str], None]) -> str:
    """Ninja's output. It ends with this process; BuildFailed after ``seconds``, or with the first complaint."""
    process = subprocess.Popen(
        [ninja, "-C", str(work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=end_with_parent,
    )
    try:
        try:
            out, _ = process.communicate(timeout=min(NOTICE_SECONDS, seconds))
        except subprocess.TimeoutExpired:
            note(f"building the kernels {name}, once for this machine; at most {seconds:.0f} s ...")
            out, _ = process.communicate(timeout=max(seconds - NOTICE_SECONDS, 0.1))
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"the compiler did not end within {seconds:.0f} s on {name}") from None
    finally:
        if process.poll() is None:
            # Ninja hands it on to the compilers.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=ENDING_SECONDS)
            process.kill()
            store.end_processes_in(work)
            process.communicate()
    if process.returncode != 0:
        raise BuildFailed(_complaint(out, name))
    return out


def _complaint(output: str, name: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    failed = next((line for line in lines if line.startswith("FAILED:")), "")
    tool = "nvcc" if ".cu.o" in failed else "the linker" if store.LIBRARY in failed else "the C++ compiler"
    words = ("error", "fatal", "cannot", "not found", "undefined")
    told = [line for line in lines if any(word in line.lower() for word in words) and not line.startswith("ninja:")]
    return f"{tool} failed on {name}: {(told or lines or ['no output'])[0][-300:]}"


def compile_into(target: Path, made: Recipe, nvcc: Nvcc | None, seconds: float, note: Callable[[str], None]) -> Path:
    """Builds in a fresh folder beside ``target``, then puts it in its place in one step; path of the library."""
    cxx, ninja = find_cxx(), find_ninja()
    with store.workshop(target.parent) as work:
        (work / "build.ninja").write_text(ninja_file(made, cxx, nvcc))
        (work / "stub.cpp").write_text(STUB)
        (work / "log").write_text(run_ninja(ninja, work, made.name, seconds, note))
        about = {"name": made.name, "cuda": made.cuda, "nvcc": nvcc.version if nvcc else None}
        return store.publish(work, target, about)


def build(
    made: Recipe,
    cache: Path | None = None,
    *,
    torch_version: str | None = None,
    lock_seconds: float = LOCK_SECONDS,
    seconds: float = BUILD_SECONDS,
    note: Callable[[str], None] = say,
) -> Path:
    """Path of the library in ``cache``, built if need be; a library built by another nvcc does not count.

    Raises BuildFailed without a compiler, with one that fails or hangs, or where the cache cannot be written.
    """
    cache = cache or store.default_cache()
    name = f"{made.name}-{key(made, torch_version)}"
    nvcc = None
    if made.nvcc:
        try:
            nvcc = find_nvcc(made.cuda)
        except BuildFailed:
            # Built elsewhere into the same cache: a login node, an image.
            if found := next(filter(None, map(store.whole, sorted(cache.glob(f"{name}-nvcc*")))), None):
                return found
            raise
        name += f"-nvcc{nvcc.version}"
    target = cache / name
    if found := store.whole(target):
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _turn(cache / f"{name}.lock", made.name, lock_seconds, note):
            if found := store.whole(target):
                return found
            store.clean(cache)
            return compile_into(target, made, nvcc, seconds, note)
    except OSError as error:
        raise BuildFailed(f"ops.cache_dir={cache} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _turn(path: Path, name: str, seconds: float, note: Callable[[str], None]) -> Iterator[None]:
    """Held by one builder at a time; who has waited ``seconds`` builds beside the one who has it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=min(NOTICE_SECONDS, seconds))
    except Timeout:
        note(f"another process is building the kernels {name}; waiting at most {seconds:.0f} s ...")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=max(seconds - NOTICE_SECONDS, 0.0))
    try:
        yield
    finally:
        lock.release()


def library(kind: Kind, arch: str = "sm_90", cuda: str | None = None, cache: Path | None = None) -> Path:
    """Path of the library for this machine: the one that came with the package, or one from the cache."""
    made = recipe(kind, arch, cuda)
    if kind == "cuda" and PREBUILT.is_dir():
        for folder in sorted(PREBUILT.glob(f"{made.name}-*")):
            if (found := store.whole(folder)) and _fits(folder, made):
                return found
    return build(made, cache)


def _fits(folder: Path, made: Recipe) -> bool:
    """Return whether a library of the package is made from these sources for torch's CUDA; see ``prebuild``."""
    record = json.loads((folder / store.RECORD).read_text())
    same_cuda = made.cuda is not None and major(record["cuda"]) == major(made.cuda)
    return same_cuda and folder.name.startswith(f"{made.name}-{_portable_key(made, record['cuda'])}")


def _portable_key(made: Recipe, cuda: str) -> str:
    return key(Recipe(made.name, made.cxx, made.nvcc, made.torch_libraries, cuda), torch_version="stable")


def prebuild(archs: list[str], cuda: str | None, folder: Path = PREBUILT) -> list[Path]:
    """Builds the CUDA libraries a wheel carries.

    They use torch's stable interface of 2.11 and CUDA's static runtime, so one library serves every later torch of the
    same CUDA major version on every driver of it.
    """
    nvcc = find_nvcc(cuda)
    made = [recipe("cuda", arch, nvcc.version) for arch in archs]
    paths = [build(each, folder, torch_version="stable") for each in made]
    for leftover in folder.glob("*.lock"):
        leftover.unlink()
    return paths


def parse_archs(text: str) -> list[str]:
    """``80,90`` as sm_80 and sm_90."""
    parts = [part.strip().removeprefix("sm_").replace(".", "") for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.rstrip("a").isdecimal()):
            raise UserError(f"--arch must be compute capabilities such as 80,90 (got {text})")
    return [f"sm_{part}" for part in parts]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rwkv_lab.ops.build", description="Builds the kernels ahead of use."
    )
    parser.add_argument("--cache", type=Path, help="directory of the built libraries (default: that of ops.cache_dir)")
    parser.add_argument("--arch", help="compute capabilities to build for, e.g. 80,90 (default: the cards here)")
    parser.add_argument("--wheel", action="store_true", help="put the CUDA libraries into the package, for a wheel")
    args = parser.parse_args()
    import torch

    visible = range(torch.cuda.device_count()) if torch.version.cuda and torch.cuda.is_available() else ()
    archs = sorted({"sm_{}{}".format(*torch.cuda.get_device_capability(i)) for i in visible})
    archs = parse_archs(args.arch) if args.arch else archs
    try:
        if args.wheel:
            for path in prebuild(archs or ["sm_80", "sm_90"], torch.version.cuda):
                print(f"cuda: {path}")
            return 0
        print(f"cpu: {library('cpu', cache=args.cache)}")
        for arch in archs:
            print(f"cuda: {library('cuda', arch, torch.version.cuda, args.cache)}")
    except BuildFailed as failure:
        raise UserError(f"the kernels cannot be built: {failure}") from failure
    return 0


if __name__ == "__main__":
    raise SystemExit(main_guard(main))
