"""The kernel cache: parallel first uses, killed builds, stale locks, damage, missing and hanging tools."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rwkv_lab.ops import build, cache
from rwkv_lab.ops.toolchain import BuildFailed

FLAGS = ("-O0", "-fPIC")


@pytest.fixture
def small(tmp_path) -> build.Recipe:
    """A library of one function in place of the kernels: quick to build, by the same rules."""
    source = tmp_path / "sources of one" / "one.cpp"
    source.parent.mkdir()
    source.write_text('extern "C" int one() { return 1; }\n')
    return build.Recipe("one", {source: FLAGS}, {})


@pytest.fixture
def kept(tmp_path) -> Path:
    return tmp_path / "a cache"


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Path:
    """A folder in front of PATH for tools of the test's own; its name has a space."""
    folder = tmp_path / "own tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


BUILD_IN_ANOTHER_PROCESS = """
import pathlib, sys
from rwkv_lab.ops import build
made = build.Recipe("one", {pathlib.Path(sys.argv[1]): ("-O0", "-fPIC")}, {})
print(build.build(made, pathlib.Path(sys.argv[2])))
"""


def start_build(small: build.Recipe, kept: Path) -> subprocess.Popen:
    (source,) = small.cxx
    command = [sys.executable, "-c", BUILD_IN_ANOTHER_PROCESS, str(source), str(kept)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def until(true) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes_in(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd").startswith(str(folder)):
                found.append(entry.name)
        except OSError:
            continue
    return found


def folders(kept: Path) -> list[Path]:
    return [path for path in kept.glob("*") if path.is_dir()]


def test_built_once_then_found(small, kept, monkeypatch):
    path = build.build(small, kept)
    assert path.is_file() and folders(kept) == [path.parent]
    monkeypatch.setenv("PATH", "/nowhere")  # no compiler needed any more
    assert build.build(small, kept) == path


def test_another_source_or_header_is_another_library(small):
    (source,) = small.cxx
    names = {build.key(small)}
    source.write_text('extern "C" int one() { return 2; }\n')
    names.add(build.key(small))
    source.with_suffix(".h").write_text("// read by nobody\n")
    assert len(names | {build.key(small)}) == 3


def test_the_name_depends_on_flags_versions_and_processor(small, monkeypatch):
    (source,) = small.cxx
    native = build.Recipe("one", {source: (*FLAGS, "-march=native")}, {})
    recipes = [
        small,
        native,
        build.Recipe("one", small.cxx, {}, (), "13.0"),
        build.Recipe("one", small.cxx, {}, ("a",)),
    ]
    names = [build.key(made) for made in recipes] + [build.key(small, "2.11.0")]
    assert len(set(names)) == len(names)
    monkeypatch.setattr(build, "processor", lambda: "another")
    assert build.key(small) == names[0]
    assert build.key(native) != names[1]


def test_the_cache_follows_xdg_and_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_cache() == tmp_path / "rwkv_lab" / "ops"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.default_cache() == tmp_path / "home" / ".cache" / "rwkv_lab" / "ops"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(BuildFailed, match=r"ops\.cache_dir"):
        cache.default_cache()


@pytest.mark.slow
def test_parallel_first_uses(small, kept):
    started = [start_build(small, kept) for _ in range(3)]
    paths = {process.communicate(timeout=120)[0].strip() for process in started}
    assert all(process.returncode == 0 for process in started)
    assert len(paths) == 1 and os.path.isfile(paths.pop())
    assert len(folders(kept)) == 1


@pytest.mark.parametrize("group", [False, True], ids=["builder", "its whole group"])
def test_a_killed_build_does_no_harm(small, kept, tools, group):
    put(tools, "g++", "sleep 600")
    process = start_build(small, kept)
    until(lambda: len(processes_in(kept)) > 1)
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.communicate()
    if not group:
        until(lambda: not processes_in(kept))
    assert not list(kept.glob("one-*/"))

    (tools / "g++").unlink()
    path = build.build(small, kept)
    assert folders(kept) == [path.parent]
    assert not processes_in(kept) and not list(kept.glob("*.alive"))


def test_a_build_under_way_is_left_alone(small, kept):
    kept.mkdir()
    with cache.workshop(kept) as work:
        cache.clean(kept)
        assert work.is_dir()
    assert not folders(kept)


def test_a_compiler_that_hangs_is_given_up(small, kept, tools, monkeypatch):
    put(tools, "g++", "sleep 600")
    monkeypatch.setattr(build, "NOTICE_SECONDS", 0.1)
    said = []
    with pytest.raises(BuildFailed, match="did not end within 1 s"):
        build.build(small, kept, seconds=1, note=said.append)
    assert len(said) == 1 and "at most 1 s" in said[0]
    assert not processes_in(kept) and not folders(kept)


def test_a_lock_held_for_ever_does_not_hang(small, kept, monkeypatch):
    monkeypatch.setattr(build, "NOTICE_SECONDS", 0.05)
    kept.mkdir()
    said = []
    with build.FileLock(kept / f"one-{build.key(small)}.lock"):
        assert build.build(small, kept, lock_seconds=0.1, note=said.append).is_file()
    assert "another process" in said[0]


def test_a_compiler_that_fails_says_why(small, kept):
    (source,) = small.cxx
    source.write_text("this is not C++\n")
    with pytest.raises(BuildFailed, match=r"C\+\+ compiler failed on one: .*error"):
        build.build(small, kept)
    assert not folders(kept)


def test_a_cache_that_cannot_be_written(small, kept):
    kept.write_text("a file")
    with pytest.raises(BuildFailed, match=r"ops\.cache_dir=.* cannot be written"):
        build.build(small, kept)


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def damage_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_cut, damage_bit, lambda path: path.write_bytes(b""), os.unlink])
@pytest.mark.parametrize("name", [cache.LIBRARY, cache.RECORD])
def test_a_damaged_library_is_never_loaded_but_built_again(small, kept, damage, name):
    path = build.build(small, kept)
    good = path.read_bytes()
    damage(path.with_name(name))
    assert cache.whole(path.parent) is None
    assert build.build(small, kept).read_bytes() == good
    assert folders(kept) == [path.parent]


@pytest.mark.parametrize("record", ["[]", "null", "{}", '{"size": "x"}'])
def test_a_record_of_another_kind_counts_as_damage(small, kept, record):
    path = build.build(small, kept)
    path.with_name(cache.RECORD).write_text(record)
    assert cache.whole(path.parent) is None


def test_tools_and_folders_with_spaces(small, kept, tools, monkeypatch):
    real = build.find_cxx()
    put(tools, "my g++", f'exec {real} "$@"')
    monkeypatch.setattr(build, "find_cxx", lambda: str(tools / "my g++"))
    monkeypatch.setattr(build, "torch_folder", lambda: Path("/a torch's $folder"))
    assert build.build(small, kept).is_file()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_word_of_a_command_is_quoted(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "torch_folder", lambda: tmp_path / "my torch")
    made = build.recipe(kind, "sm_80", "13.0")
    nvcc = build.Nvcc(Path("/my cuda/bin/nvcc"), "13.0") if kind == "cuda" else None
    text = build.ninja_file(made, "/my tools/g++", nvcc)
    commands = [shlex.split(line.partition("=")[2]) for line in text.splitlines() if "command =" in line]
    assert {command[0] for command in commands} <= {"/my tools/g++", "/my cuda/bin/nvcc"}
    assert not {"tools/g++", "torch/include", "cuda/bin/nvcc"} & {word for command in commands for word in command}


def test_the_record_names_the_tools(small, kept):
    record = json.loads(build.build(small, kept).with_name(cache.RECORD).read_text())
    assert record["name"] == "one" and record["nvcc"] is None and record["size"] > 0
