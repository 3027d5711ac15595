"""The CUDA library without a GPU: it compiles for every card, needs no symbol that is not there, and is found again."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ops_cuda import recipe as benchmark_recipe
from rwkv_lab.config.errors import main_guard
from rwkv_lab.ops import build, cache, toolchain

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc"),
]

# In libtorch_cuda and nowhere else: torch/csrc/inductor/aoti_torch/shim_cuda.cpp.
ONLY_IN_TORCH_CUDA = {"aoti_torch_get_current_cuda_stream"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def made(kept) -> Path:
    return build.build(build.recipe("cuda", "sm_80"), kept)


def symbols(path: Path, kind: str) -> set[str]:
    """The names of dynamic symbols, without their versions; those of the C and C++ runtimes left out."""
    out = subprocess.run(["nm", "-D", kind, str(path)], check=True, capture_output=True, text=True).stdout
    names = [line.split()[-1] for line in out.splitlines() if " w " not in line]
    return {name.partition("@")[0] for name in names if not re.search(r"@+(GLIBC|GLIBCXX|CXXABI|GCC)_", name)}


def needed(path: Path) -> list[str]:
    out = subprocess.run(["readelf", "-d", str(path)], check=True, capture_output=True, text=True).stdout
    return re.findall(r"NEEDED.*\[(.*)\]", out)


def test_no_symbol_is_missing(made):
    folder = build.torch_folder() / "lib"
    given = {name for library in folder.glob("lib*.so") for name in symbols(library, "--defined-only")}
    missing = symbols(made, "--undefined-only") - given
    assert missing <= ONLY_IN_TORCH_CUDA
    assert (missing == ONLY_IN_TORCH_CUDA) == (not (folder / "libtorch_cuda.so").exists())


def test_it_asks_for_the_libraries_that_have_them(made):
    assert {"libtorch_cuda.so", "libtorch_cpu.so"} <= set(needed(made))
    allowed = r"libtorch_(cuda|cpu)\.so|libc10\.so|libcudart.*|lib(stdc\+\+|m|gcc_s|c|dl|pthread|rt)\.so.*|ld-linux.*"
    assert all(re.fullmatch(allowed, name) for name in needed(made)), needed(made)


def test_the_library_loads_beside_torchs_own(made, tmp_path):
    """Its libtorch_cuda is a stub of the test's: as torch does, loaded first and for itself alone."""
    (tmp_path / "stub.cpp").write_text(build.STUB)
    stub = tmp_path / "libtorch_cuda.so"
    command = ["g++", "-shared", "-Wl,-soname,libtorch_cuda.so", str(tmp_path / "stub.cpp"), "-o", str(stub)]
    subprocess.run(command, check=True)
    code = (
        "import ctypes, sys, torch\n"
        "ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_LOCAL)\n"
        "from rwkv_lab.ops.native import load_library, registered\n"
        "load_library('cpu')\n"
        "torch.ops.load_library(sys.argv[1])\n"
        "assert registered('CUDA')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(made), str(stub)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
def test_it_builds_without_spills(kept, arch):
    report = build.build(build.recipe("cuda", arch), kept).with_name("log").read_text()
    entries = re.findall(r"Compiling entry function '(\w+)'", report)
    kernels = {"forward_kernel": 7, "forward_summary_kernel": 7, "backward_kernel": 14, "add_segments_kernel": 1}
    assert {kernel: sum(kernel in name for name in entries) for kernel in kernels} == kernels
    assert len(entries) == sum(kernels.values())
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert memory == [("0", "0", "0")] * len(entries), report


def test_what_the_benchmark_compares_with_builds(kept):
    assert {"sequential_forward", "sequential_backward", "convolution"} <= symbols(
        build.build(benchmark_recipe("sm_80", None), kept), "--defined-only"
    )


def test_a_card_this_nvcc_does_not_know_is_its_fault(kept):
    with pytest.raises(toolchain.BuildFailed, match=r"nvcc failed on wkv_cuda-sm_20: .*[Uu]nsupported"):
        build.build(build.recipe("cuda", "sm_20"), kept)


def test_built_elsewhere_and_used_without_nvcc(made, kept, monkeypatch):
    def none(cuda):
        raise toolchain.BuildFailed("no nvcc")

    monkeypatch.setattr(build, "find_nvcc", none)
    assert build.build(build.recipe("cuda", "sm_80"), kept) == made
    with pytest.raises(toolchain.BuildFailed, match="no nvcc"):
        build.build(build.recipe("cuda", "sm_100"), kept)


def test_another_nvcc_builds_another_library(made, kept, monkeypatch):
    real = toolchain.find_nvcc(None)
    newer = toolchain.Nvcc(real.path, f"{toolchain.major(real.version)}.99")
    monkeypatch.setattr(build, "find_nvcc", lambda cuda: newer)
    monkeypatch.setattr(build, "compile_into", lambda target, *rest: target)
    assert build.build(build.recipe("cuda", "sm_80"), kept).name.endswith("nvcc13.99")


def test_libraries_of_a_wheel(tmp_path, monkeypatch):
    """Built for one torch and one CUDA release, they serve another torch and a later release of that CUDA."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "wkv_cuda.cu").write_text("__global__ void nothing() {}\n")
    (sources / "bind_cuda.cpp").write_text("int one() { return 1; }\n")
    monkeypatch.setattr(build, "CSRC", sources)
    version = toolchain.find_nvcc(None).version
    (path,) = build.prebuild(["sm_80"], None, tmp_path / "prebuilt")
    assert json.loads(path.with_name(cache.RECORD).read_text())["cuda"] == version
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "prebuilt")
    monkeypatch.setattr(build, "build", lambda made, cache: "built")
    later = f"{toolchain.major(version)}.99"
    assert build.library("cuda", "sm_80", later) == path
    assert build.library("cuda", "sm_90", later) == "built"
    assert build.library("cuda", "sm_80", f"{toolchain.major(version) - 1}.8") == "built"
    (sources / "wkv_cuda.cu").write_text("__global__ void something() {}\n")
    assert build.library("cuda", "sm_80", later) == "built"
    assert not [each for each in (tmp_path / "prebuilt").iterdir() if not each.is_dir()]


def test_the_command_builds_for_cards_that_are_not_here(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(build, "library", lambda kind, arch="", cuda=None, cache=None: f"{cache}/{kind}{arch}")
    monkeypatch.setattr("sys.argv", ["build", "--arch", "8.0,sm_90a", "--cache", str(tmp_path)])
    assert main_guard(build.main) == 0
    built = [f"{tmp_path}/{name}" for name in ("cpu", "cudasm_80", "cudasm_90a")]
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == built
    monkeypatch.setattr("sys.argv", ["build", "--arch", "ampere"])
    assert main_guard(build.main) == 2
    assert "80,90" in capsys.readouterr().err
