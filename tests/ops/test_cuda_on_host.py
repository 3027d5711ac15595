"""The CUDA kernels run on the CPU, thread by thread, against the float64 reference: numbers, indices, barriers."""

import ctypes
import math
import shutil
import subprocess

import pytest
import torch

MARGIN = 512


@pytest.fixture(scope="module")
def kernels(tmp_path_factory, repository):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("cuda") / "host.so"
    source = repository / "tests" / "ops" / "cuda_on_host.cpp"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-I", str(repository / "csrc")]
    subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def fenced(shape, dtype, content=None):
    """A tensor of `shape`, NaN unless given, between two strips of NaN; and the whole, to see that the strips stay."""
    count = math.prod(shape)
    whole = torch.full((count + 2 * MARGIN,), torch.nan, dtype=dtype)
    part = whole[MARGIN : MARGIN + count].view(shape)
    if content is not None:
        part.copy_(content)
    return part, whole


def run(kernels, case, width, seed, den_eps=0.0, k_max=math.inf):
    """Results as those of the `scan` fixture, from both kernels."""
    B, T, C = case.k.shape
    dtype, rows = case.dtype, (T + 63) // 64 + 1
    inputs = {n: fenced(getattr(case, n).shape, torch.float32, getattr(case, n))[0] for n in ("w", "u")}
    inputs |= {n: fenced(getattr(case, n).shape, dtype, getattr(case, n))[0] for n in ("k", "v", "gy")}
    state = None if case.state is None else fenced((B, 3, C), torch.float32, case.state)[0]
    gstate = fenced((B, 3, C), torch.float32, case.gstate)[0]
    shapes = {
        "y": ((B, T, C), dtype),
        "state": ((B, 3, C), torch.float32),
        "checkpoints": ((B, rows, 3, C), torch.float32),
        "gw": ((B, C), torch.float32),
        "gu": ((B, C), torch.float32),
        "gk": ((B, T, C), dtype),
        "gv": ((B, T, C), dtype),
        "gstate": ((B, 3, C), torch.float32),
    }
    made = {name: fenced(*args) for name, args in shapes.items()}
    out = {name: ctypes.c_void_p(part.data_ptr()) for name, (part, _) in made.items()}
    pointer = {name: ctypes.c_void_p(x.data_ptr()) for name, x in inputs.items()}
    eps = ctypes.c_float(math.log(den_eps) if den_eps > 0 else -math.inf)
    common = (dtype == torch.bfloat16, width, seed, B, T, C, eps, ctypes.c_float(k_max))
    first = (pointer["w"], pointer["u"], pointer["k"], pointer["v"])
    start = None if state is None else ctypes.c_void_p(state.data_ptr())
    assert kernels.forward(*common, *first, start, out["y"], out["state"], out["checkpoints"])
    grads = (out[name] for name in ("gw", "gu", "gk", "gv", "gstate"))
    end = ctypes.c_void_p(gstate.data_ptr())
    assert kernels.backward(*common, *first, out["checkpoints"], pointer["gy"], end, *grads)
    for name, (_, whole) in made.items():
        assert whole[:MARGIN].isnan().all() and whole[-MARGIN:].isnan().all(), f"wrote beside {name}"
    results = {name: part.double() for name, (part, _) in made.items() if name != "checkpoints"}
    results["gw"], results["gu"] = results["gw"].sum(0), results["gu"].sum(0)
    if case.state is None:
        del results["gstate"]
    return results


def assert_close(scan, kernels, case, width, tolerance, floor=1e-2, **kwargs):
    expected = scan.results(case, "reference", dtype=torch.float64, **kwargs)
    found = run(kernels, case, width, seed=1, **kwargs)
    for name, distance in scan.distances(found, expected, floor).items():
        assert distance < tolerance, f"{name}: {distance}"


@pytest.mark.parametrize("width", [8, 16, 32])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 33), (1, 64, 32), (2, 65, 40), (1, 150, 9), (1, 530, 5)])
def test_float32(scan, kernels, shape, width):
    assert_close(scan, kernels, scan.case(*shape, torch.float32, state=shape[1] % 2 == 0), width, 3e-6)


@pytest.mark.parametrize("width", [16, 32])
def test_bfloat16(scan, kernels, width):
    case = scan.case(2, 150, 20, torch.bfloat16)
    assert_close(scan, kernels, case, width, 6e-3, den_eps=1e-8, k_max=0.5)


@pytest.mark.parametrize("width", [8, 32])
@pytest.mark.parametrize("spread", [0, 50, 57, 61, 148, 1e4])
def test_extreme_keys(scan, kernels, spread, width):
    case = scan.case(1, 150, 9, k=lambda k: 0.5 * spread * k.sign())
    assert_close(scan, kernels, case, width, 3e-6 + 1e-6 * spread, floor=1.0, den_eps=1e-8)


@pytest.mark.parametrize("slope", [-100, 100])
def test_drifting_keys_and_strong_decay(scan, kernels, slope):
    case = scan.case(1, 150, 9, k=lambda k: k + torch.linspace(-slope, slope, k.shape[1], dtype=k.dtype)[:, None])
    case.w = torch.linspace(-3000, -1e-4, 9).double()
    case.u = torch.linspace(-100, 100, 9).double().flip(0)
    assert_close(scan, kernels, case, 16, 1e-4, floor=1.0)


def test_masked_keys_count_for_nothing(scan, kernels):
    case = scan.case(1, 150, 9)
    case.k[:, 7] = -torch.inf
    assert_close(scan, kernels, case, 8, 3e-6)


@pytest.mark.parametrize("width", [8, 16, 32])
def test_no_result_depends_on_the_order_of_threads(scan, kernels, width):
    case = scan.case(1, 530, 12)
    first = run(kernels, case, width, seed=1)
    for seed in (2, 3):
        again = run(kernels, case, width, seed=seed)
        assert all(torch.equal(first[name], again[name]) for name in first)
