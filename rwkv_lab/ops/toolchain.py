"""Finds the compilers of the kernels; where one is missing or unfit, the reason and what to install."""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

VERSION_SECONDS = 20.0


class BuildFailed(Exception):
    """Why kernels cannot be had: one line."""


@dataclass(frozen=True)
class Nvcc:
    """CUDA's compiler and its release, such as 13.0."""

    path: Path
    version: str

    @property
    def libraries(self) -> Path | None:
        """The folder of CUDA's runtime if nvcc does not find it by itself: pip's packages keep it in lib, not lib64."""
        folder = self.path.resolve().parent.parent / "lib"
        return folder if (folder / "libcudart_static.a").exists() else None


def find_cxx() -> str:
    """Path of the C++ compiler."""
    cxx = next((found for name in ("g++", "c++", "clang++") if (found := shutil.which(name))), None)
    if cxx is None:
        raise BuildFailed("no C++ compiler (g++, c++ or clang++) on PATH")
    return cxx


def find_ninja() -> str:
    """Path of ninja, from PATH or from its Python package, installed beside Python, for the user or by --target."""
    found = shutil.which("ninja")
    if found is None and (package := importlib.util.find_spec("ninja")) and package.origin:
        user = sysconfig.get_preferred_scheme("user")
        beside = Path(package.origin).parents[1] / "bin"
        folders = [sysconfig.get_path("scripts"), sysconfig.get_path("scripts", user), str(beside)]
        found = shutil.which("ninja", path=os.pathsep.join(folders))
    if found is None:
        raise BuildFailed("ninja is missing (pip install ninja)")
    return found


def find_nvcc(cuda: str | None) -> Nvcc:
    """The first nvcc whose major version is that of ``cuda``, the CUDA release torch was built for (None: any).

    Order: CUDA_HOME or CUDA_PATH (then no other), PATH, /usr/local/cuda*, pip's nvidia-cuda-nvcc. Code of another
    major version would need a newer driver than torch itself.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and not (Path(home) / "bin" / "nvcc").exists():
        raise BuildFailed(f"CUDA_HOME={home} has no bin/nvcc")
    found = [Nvcc(path, version) for path in _candidates(home) if (version := nvcc_version(path))]
    fitting = [nvcc for nvcc in found if cuda is None or major(nvcc.version) == major(cuda)]
    if fitting:
        return fitting[0]
    if found:
        raise BuildFailed(
            f"nvcc {found[0].version} ({found[0].path}) does not fit torch, which was built for CUDA {cuda}: "
            + what_to_install(cuda)
        )
    raise BuildFailed(f"no nvcc in CUDA_HOME, on PATH, in /usr/local/cuda or from pip: {what_to_install(cuda)}")


def what_to_install(cuda: str | None) -> str:
    """The command or package that brings the nvcc for CUDA release ``cuda``."""
    if cuda is None or major(cuda) < 13:
        # pip's packages for CUDA 12 have ptxas only.
        return f"install the CUDA toolkit {cuda or ''}".rstrip() + " and set CUDA_HOME"
    parts = " ".join(f"'{name}=={cuda}.*'" for name in ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt"))
    return f"pip install {parts}"


def major(version: str) -> int:
    """The first number of a version."""
    return int(version.partition(".")[0])


def _candidates(home: str | None) -> list[Path]:
    if home:
        return [Path(home) / "bin" / "nvcc"]
    on_path = shutil.which("nvcc")
    paths = [Path(on_path)] if on_path else []
    paths += sorted(Path("/usr/local").glob("cuda*/bin/nvcc"), reverse=True)
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations or []) if package else []:
        paths += sorted(Path(folder).glob("cu*/bin/nvcc"), reverse=True)
    return list({path.resolve(): path for path in paths if path.exists()}.values())


def nvcc_version(path: Path) -> str | None:
    """The release an nvcc reports; None if it does not run."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"release (\d+\.\d+)", done.stdout)
    return found[1] if found else None
