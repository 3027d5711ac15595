"""The kernel cache: parallel first uses, killed builds, stale locks, no compiler; CUDA code compiled where nvcc is."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rwkv_lab.config.errors import UserError
from rwkv_lab.ops import build, native


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A library of one function in place of the kernels: quick to build, by the same rules."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(build, "CSRC", tmp_path / "csrc")
    monkeypatch.setattr(build, "HEADERS", {"cpu": ()})
    made = build.Recipe("cpu", {"one.cpp": ("-O0", "-fPIC")}, {}, ("-shared",))
    monkeypatch.setattr(build, "recipe", lambda *_: made)
    return tmp_path / "cache"


BUILD_IN_ANOTHER_PROCESS = """
import pathlib, sys
from rwkv_lab.ops import build
build.CSRC = pathlib.Path(sys.argv[1])
build.HEADERS = {"cpu": ()}
made = build.Recipe("cpu", {"one.cpp": ("-O0", "-fPIC")}, {}, ("-shared",))
build.recipe = lambda *_: made
print(build.library("cpu", cache=pathlib.Path(sys.argv[2])))
"""


def start_build(small) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILD_IN_ANOTHER_PROCESS, str(build.CSRC), str(small)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_built_once_then_found(small, monkeypatch):
    path = build.library("cpu", cache=small)
    assert path.is_file() and not list(small.glob("building-*"))
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)  # no compiler needed any more
    assert build.library("cpu", cache=small) == path


def test_another_source_is_another_library(small):
    first = build.library("cpu", cache=small)
    (build.CSRC / "one.cpp").write_text('extern "C" int one() { return 2; }\n')
    assert build.library("cpu", cache=small) != first


def test_the_name_depends_on_flags_and_processor(small, monkeypatch):
    made = build.recipe("cpu")
    names = {build.key(made), build.key(build.Recipe("cpu", {"one.cpp": ("-O1", "-fPIC")}, {}, ("-shared",)))}
    monkeypatch.setattr(build, "processor", lambda: "another")
    assert len(names | {build.key(made)}) == 3


@pytest.mark.slow
def test_parallel_first_uses(small):
    started = [start_build(small) for _ in range(3)]
    paths = {process.communicate(timeout=120)[0].strip() for process in started}
    assert all(process.returncode == 0 for process in started)
    assert len(paths) == 1 and os.path.isfile(paths.pop())


def test_a_killed_build_does_no_harm(small, monkeypatch, tmp_path):
    slow = tmp_path / "bin" / "g++"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    process = start_build(small)
    deadline = time.monotonic() + 60
    while not list(small.glob("building-*/build.ninja")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    left = list(small.glob("building-*"))
    assert left and not list(small.glob("*.so"))

    monkeypatch.setenv("PATH", os.environ["PATH"].split(":", 1)[1])
    os.utime(left[0], (0, 0))
    assert build.library("cpu", cache=small).is_file()
    assert not list(small.glob("building-*"))  # the old remains are swept away


def test_a_lock_held_for_ever_does_not_hang(small):
    target = small / f"wkv_cpu-{build.key(build.recipe('cpu'))}.so"
    small.mkdir()
    with build.FileLock(target.with_suffix(".lock")):
        assert build.library("cpu", cache=small, lock_seconds=0.1) == target
    assert target.is_file()


def test_no_compiler_is_one_warning_and_the_reference(small, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(build.BuildFailed, match=r"no C\+\+ compiler"):
        build.library("cpu", cache=small)

    for cached in (native.ready, native.why_not):
        cached.cache_clear()
    monkeypatch.setattr(build, "default_cache", lambda: small)
    monkeypatch.setattr(native, "define_operators", lambda: native.load_library("cpu"))
    try:
        with pytest.warns(UserWarning, match="slow plain torch in place of the native kernels: no C") as caught:
            assert native.ready("cpu", False) is False
            assert native.ready("cpu", False) is False
        assert len(caught) == 1
        with pytest.raises(UserError, match=r"ops\.backend: native is not possible here"):
            native.ready("cpu", True)
    finally:
        for cached in (native.ready, native.why_not):
            cached.cache_clear()


def test_a_compiler_that_fails_says_why(small):
    (build.CSRC / "one.cpp").write_text("this is not C++\n")
    with pytest.raises(build.BuildFailed, match=r"failed on cpu kernels: .*error"):
        build.library("cpu", cache=small)
    assert not list(small.glob("*.so")) and not list(small.glob("building-*"))


def test_a_cache_that_cannot_be_written(small):
    small.write_text("a file")
    with pytest.raises(build.BuildFailed, match="cannot write the kernel cache"):
        build.library("cpu", cache=small)


def test_a_library_cut_short_is_built_again(small, monkeypatch):
    path = build.library("cpu", cache=small)
    path.write_bytes(path.read_bytes()[:100])
    monkeypatch.setattr(build, "default_cache", lambda: small)
    native.load_library("cpu")
    assert path.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_cuda_library_builds_without_spills(tmp_path, arch):
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    report = build.library("cuda", arch, cache=tmp_path).with_suffix(".log").read_text()
    entries = re.findall(r"Compiling entry function '(\w+)'", report)
    kernels = {"forward_kernel": 7, "forward_summary_kernel": 7, "backward_kernel": 14, "add_segments_kernel": 1}
    assert {kernel: sum(kernel in name for name in entries) for kernel in kernels} == kernels
    assert len(entries) == sum(kernels.values())
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert memory == [("0", "0", "0")] * len(entries), report


@pytest.mark.slow
def test_cuda_baselines_build(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    assert build.library("bench", "sm_80", cache=tmp_path).is_file()
