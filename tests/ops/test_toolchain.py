"""Which compilers are chosen, and what the sentence proposes where one is missing or unfit."""

import sys
from pathlib import Path

import pytest

from rwkv_lab.ops import toolchain
from rwkv_lab.ops.toolchain import BuildFailed


def make_nvcc(folder: Path, version: str) -> Path:
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def only(monkeypatch, tmp_path):
    """No nvcc but those the test makes, the first of them on PATH."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    found: list[Path] = []
    real = toolchain._candidates
    monkeypatch.setattr(toolchain, "_candidates", lambda home: real(home) if home else found)
    return found


def test_the_first_of_the_right_major_version_is_taken(only, tmp_path):
    old, new = make_nvcc(tmp_path / "old", "12.8"), make_nvcc(tmp_path / "new", "13.1")
    only += [old, new]
    assert toolchain.find_nvcc("13.0") == toolchain.Nvcc(new, "13.1")
    assert toolchain.find_nvcc("12.6").path == old
    assert toolchain.find_nvcc(None).path == old


def test_cuda_home_excludes_all_others(only, tmp_path, monkeypatch):
    only.append(make_nvcc(tmp_path / "new", "13.0"))
    chosen = make_nvcc(tmp_path / "chosen", "12.8")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "chosen"))
    assert toolchain.find_nvcc("12.8").path == chosen
    with pytest.raises(BuildFailed, match=r"nvcc 12\.8 .* CUDA 13\.0"):
        toolchain.find_nvcc("13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BuildFailed, match="CUDA_HOME="):
        toolchain.find_nvcc("13.0")


def test_what_is_to_be_installed(only):
    with pytest.raises(BuildFailed, match=r"pip install 'nvidia-cuda-nvcc==13\.0\.\*' 'nvidia-nvvm==13\.0\.\*'"):
        toolchain.find_nvcc("13.0")
    with pytest.raises(BuildFailed, match=r"install the CUDA toolkit 12\.8"):
        toolchain.find_nvcc("12.8")


def test_an_nvcc_that_does_not_run_does_not_count(only, tmp_path):
    broken = make_nvcc(tmp_path / "broken", "13.0")
    broken.write_text("#!/bin/sh\nexit 1\n")
    only.append(broken)
    with pytest.raises(BuildFailed, match="no nvcc"):
        toolchain.find_nvcc("13.0")


def test_pips_packages_are_looked_at(tmp_path, monkeypatch):
    nvcc = make_nvcc(tmp_path / "nvidia" / "cu13", "13.0")
    (tmp_path / "nvidia" / "cu13" / "lib").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    assert nvcc in toolchain._candidates(None)
    assert toolchain.Nvcc(nvcc, "13.0").libraries is None
    (tmp_path / "nvidia" / "cu13" / "lib" / "libcudart_static.a").touch()
    assert toolchain.Nvcc(nvcc, "13.0").libraries == nvcc.parent.parent / "lib"


def test_ninja_of_a_package_in_a_folder_of_its_own(monkeypatch, tmp_path):
    for folder, name in (("ninja", "__init__.py"), ("bin", "ninja")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch(mode=0o755)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sysconfig.get_path", lambda *_: "/nowhere")
    monkeypatch.delitem(sys.modules, "ninja", raising=False)
    assert toolchain.find_ninja() == str(tmp_path / "bin" / "ninja")


def test_without_ninja_or_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BuildFailed, match="pip install ninja"):
        toolchain.find_ninja()
    with pytest.raises(BuildFailed, match=r"no C\+\+ compiler"):
        toolchain.find_cxx()
