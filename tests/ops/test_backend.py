"""Which backend is chosen and why the other is not: cards of every kind by a torch that only pretends to have them."""

import shutil
import subprocess
import sys
import warnings

import pytest
import torch

from rwkv_lab.config.errors import UserError
from rwkv_lab.ops import build, cache, native, resolve_backend
from rwkv_lab.ops.toolchain import BuildFailed

CPU, CARD = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture(autouse=True)
def forgotten():
    """What was found before or by the test does not count."""
    for cached in (native.ready, native.why_not):
        cached.cache_clear()
    yield
    for cached in (native.ready, native.why_not):
        cached.cache_clear()


@pytest.fixture
def card(monkeypatch):
    """A machine whose card 1 differs from card 0; what would be loaded for it."""
    loaded = []
    capability = {0: (9, 0), 1: (8, 6)}
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[torch.device(device).index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(native, "load_library", lambda kind, arch="", cache=None: loaded.append((kind, arch, cache)))
    monkeypatch.setattr(native, "define_operators", lambda cache: None)
    monkeypatch.setattr(native, "probe", lambda device: None)
    return capability, loaded


def test_the_chosen_card_counts_not_the_first(card, tmp_path):
    assert native.why_not(CARD, tmp_path) is None
    assert card[1] == [("cuda", "sm_86", tmp_path)]


@pytest.mark.parametrize("capability", [(6, 1), (3, 5)])
def test_an_old_card_is_one_sentence(card, capability):
    card[0][1] = capability
    assert native.why_not(CARD) == (
        f"the kernels need compute capability 7.0, a card has {capability[0]}.{capability[1]}"
    )
    assert card[1] == []


def test_a_second_kind_of_card_in_one_process(card, monkeypatch):
    monkeypatch.setattr(native, "registered", lambda key: True)
    monkeypatch.setattr(torch.ops, "loaded_libraries", {"/cache/wkv_cuda-sm_90-0123/kernels.so"})
    assert native.why_not(torch.device("cuda", 0)) is None
    assert "another kind of card" in str(native.why_not(CARD))


def test_a_torch_without_cuda(card, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in str(native.why_not(CARD))


def test_the_cause_is_in_the_one_warning_or_the_mistake(monkeypatch):
    def fail(cache):
        raise BuildFailed("no C++ compiler")

    monkeypatch.setattr(native, "define_operators", fail)
    with pytest.warns(UserWarning, match="no C") as caught:
        assert resolve_backend("auto", "cpu") == "reference"
        assert resolve_backend("auto", "cpu") == "reference"
    assert len(caught) == 1
    with pytest.raises(UserError, match=r"ops\.backend: .*no C"):
        resolve_backend("native", "cpu")


def test_a_library_with_an_undefined_symbol_is_not_built_again(monkeypatch, tmp_path):
    source = tmp_path / "one.cpp"
    source.write_text("void nowhere(); struct Once { Once() { nowhere(); } } once;\n")
    made = build.Recipe("one", {source: ("-O0", "-fPIC")}, {})
    calls = []
    monkeypatch.setattr(native, "library", lambda *_: calls.append(1) or build.build(made, tmp_path / "cache"))
    with pytest.raises(BuildFailed, match=r"undefined symbol: \w*nowhere"):
        native.load_library("cpu")
    assert len(calls) == 1


@pytest.mark.parametrize("fault", ["raises", "wrong numbers"])
def test_kernels_that_do_not_work_are_not_chosen(monkeypatch, fault):
    assert native.why_not(CPU) is None
    right = native.wkv_native

    def wrong(*args):
        if fault == "raises":
            raise RuntimeError("CUDA error: no kernel image is available\nmore")
        y, state = right(*args)
        return 1.001 * y, state

    monkeypatch.setattr(native, "wkv_native", wrong)
    with pytest.raises(BuildFailed, match="no kernel image is available$" if fault == "raises" else "wrong numbers"):
        native.probe(CPU)


def test_devices_without_a_kernel():
    assert "meta" in str(native.why_not(torch.device("meta")))


@pytest.mark.slow
def test_a_damaged_library_ends_no_process(tmp_path):
    code = (
        "import sys, pathlib, torch\n"
        "from rwkv_lab.ops import resolve_backend\n"
        "print(resolve_backend('auto', 'cpu', pathlib.Path(sys.argv[1])))\n"
    )

    def resolved() -> str:
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    whole = build.library("cpu").parent
    path = shutil.copytree(whole, tmp_path / whole.name) / "kernels.so"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(size // 2)
    assert resolved() == "native"
    assert path.stat().st_size > size // 2 and cache.whole(path.parent) == path


def test_nothing_is_compiled_or_warned_of_by_importing():
    code = "import rwkv_lab.ops, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_backend("reference", "cpu") == "reference"
