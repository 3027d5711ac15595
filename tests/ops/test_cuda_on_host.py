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


class Arrays(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("B", "T", "C", "length")]
    _fields_ += [(name, ctypes.c_void_p) for name in ("w", "u", "k", "v")]
    _fields_ += [(name, ctypes.c_float) for name in ("log_eps", "k_max")]


def fenced(shape, dtype, content=None):
    """A tensor of `shape`, NaN unless given, between two strips of NaN; and the whole, to see that the strips stay."""
    count = math.prod(shape)
    whole = torch.full((count + 2 * MARGIN,), torch.nan, dtype=dtype)
    part = whole[MARGIN : MARGIN + count].view(shape)
    if content is not None:
        part.copy_(content)
    return part, whole


def run(kernels, case, width, seed, den_eps=0.0, k_max=math.inf, segments=1):
    """Results as those of the `scan` fixture, from both kernels; `segments` is met as nearly as whole tiles allow."""
    B, T, C = case.k.shape
    dtype, rows = case.dtype, (T + 63) // 64 + 1
    inputs = {n: fenced(getattr(case, n).shape, torch.float32, getattr(case, n))[0] for n in ("w", "u", "gstate")}
    inputs |= {n: fenced(getattr(case, n).shape, dtype, getattr(case, n))[0] for n in ("k", "v", "gy")}
    if case.state is not None:
        inputs["start"] = fenced((B, 3, C), torch.float32, case.state)[0]
    lengths = [-(-T // (segments * tile)) * tile for tile in (4096 // width, 2048 // width)]
    scratch = [(parts, B, -(-T // length), C) for parts, length in zip((3, 5), lengths, strict=True)]
    shapes = {
        "y": ((B, T, C), dtype),
        "state": ((B, 3, C), torch.float32),
        "checkpoints": ((B, rows, 3, C), torch.float32),
        "gw": ((B, C), torch.float32),
        "gu": ((B, C), torch.float32),
        "gk": ((B, T, C), dtype),
        "gv": ((B, T, C), dtype),
        "gstate": ((B, 3, C), torch.float32),
        "forward scratch": (scratch[0], torch.float32),
        "backward scratch": (scratch[1], torch.float32),
    }
    made = {name: fenced(*args) for name, args in shapes.items()}
    out = {name: ctypes.c_void_p(part.data_ptr()) for name, (part, _) in made.items()}
    pointer = {name: ctypes.c_void_p(x.data_ptr()) for name, x in inputs.items()}
    log_eps = math.log(den_eps) if den_eps > 0 else -math.inf

    def common(length):
        arrays = Arrays(B, T, C, length, *(pointer[name] for name in ("w", "u", "k", "v")), log_eps, k_max)
        return dtype == torch.bfloat16, width, seed, arrays

    results = [out[name] for name in ("y", "state", "checkpoints", "forward scratch")]
    assert kernels.forward(*common(lengths[0]), pointer.get("start"), *results)
    results = [out[name] for name in ("gw", "gu", "gk", "gv", "gstate", "backward scratch")]
    assert kernels.backward(*common(lengths[1]), out["checkpoints"], pointer["gy"], pointer["gstate"], *results)
    for name, (_, whole) in made.items():
        assert whole[:MARGIN].isnan().all() and whole[-MARGIN:].isnan().all(), f"wrote beside {name}"
    found = {name: made[name][0].double() for name in ("y", "state", "gw", "gu", "gk", "gv", "gstate")}
    found["gw"], found["gu"] = found["gw"].sum(0), found["gu"].sum(0)
    if case.state is None:
        del found["gstate"]
    return found


def assert_close(scan, kernels, case, width, tolerance, floor=1e-2, segments=1, **kwargs):
    expected = scan.results(case, "reference", dtype=torch.float64, **kwargs)
    found = run(kernels, case, width, seed=1, segments=segments, **kwargs)
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


@pytest.mark.parametrize("segments", [2, 3, 5])
@pytest.mark.parametrize("state", [False, True])
def test_time_cut_into_segments(scan, kernels, segments, state):
    case = scan.case(2, 611, 40, state=state)
    assert_close(scan, kernels, case, 32, 5e-6, segments=segments)
    whole = run(kernels, case, 32, seed=1)
    split = run(kernels, case, 32, seed=1, segments=segments)
    for name, distance in scan.distances(split, whole).items():
        assert distance < 3e-6, f"{name}: {distance}"


@pytest.mark.parametrize(("width", "shape"), [(8, (1, 1537, 9)), (16, (1, 1024, 20))])
def test_narrow_blocks_cut_into_segments(scan, kernels, width, shape):
    assert_close(scan, kernels, scan.case(*shape), width, 1e-5, segments=3)


@pytest.mark.parametrize("segments", [2, 5])
def test_bfloat16_in_segments(scan, kernels, segments):
    case = scan.case(2, 611, 20, torch.bfloat16)
    assert_close(scan, kernels, case, 32, 6e-3, segments=segments, den_eps=1e-8, k_max=0.5)


@pytest.mark.parametrize("segments", [2, 3, 5])
@pytest.mark.parametrize("spread", [50, 61, 148, 1e4])
@pytest.mark.parametrize("rising", [False, True])
def test_extreme_keys_at_the_edges_of_segments(scan, kernels, spread, segments, rising):
    """Segments begin at multiples of 64; there the keys jump."""

    def edges(k):
        k = k.clone()
        k[:, 63::64] = -0.5 * spread if rising else 0.5 * spread
        k[:, 64::64] = 0.5 * spread if rising else -0.5 * spread
        return k

    case = scan.case(1, 611, 9, k=edges)
    assert_close(scan, kernels, case, 32, 5e-6 + 1e-6 * spread, floor=1.0, segments=segments, den_eps=1e-8)


def test_drift_and_strong_decay_over_segments(scan, kernels):
    case = scan.case(1, 611, 9, k=lambda k: k + torch.linspace(-100, 100, k.shape[1], dtype=k.dtype)[:, None])
    case.w = torch.linspace(-3000, -1e-4, 9).double()
    case.u = torch.linspace(-100, 100, 9).double().flip(0)
    assert_close(scan, kernels, case, 32, 1e-4, floor=1.0, segments=5)


def test_a_masked_segment_counts_for_nothing(scan, kernels):
    case = scan.case(1, 611, 9)
    case.k[:, 120:400] = -torch.inf
    # a scale that decays for 280 steps is a large exponent, whose rounding shows
    assert_close(scan, kernels, case, 32, 1e-4, segments=5)


@pytest.mark.parametrize(("width", "segments"), [(8, 1), (16, 1), (32, 1), (32, 3)])
def test_no_result_depends_on_the_order_of_threads_and_blocks(scan, kernels, width, segments):
    case = scan.case(1, 530, 40 if segments > 1 else 12)
    first = run(kernels, case, width, seed=1, segments=segments)
    for seed in (2, 3):
        again = run(kernels, case, width, seed=seed, segments=segments)
        assert all(torch.equal(first[name], again[name]) for name in first)


def layout(kernels, B, T, C, narrowest=8, steps=16, multiprocessors=132):
    """Channels of a block, segments and steps of a segment."""
    found = (ctypes.c_int * 3)()
    sizes = (ctypes.c_int64(x) for x in (B, T, C))
    kernels.layout(*sizes, narrowest, steps, ctypes.c_int64(multiprocessors), found)
    return tuple(found)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 1024, 2048), (32, 1, 1024)),  # blocks for all
        ((1, 16384, 2048), (8, 1, 16384)),  # blocks for all, once they are narrow
        ((1, 16384, 1024), (8, 1, 16384)),  # too few, but not by enough to read the inputs twice
        ((1, 4095, 256), (8, 1, 4095)),  # too short
        ((1, 16384, 256), (32, 32, 512)),
        ((1, 65536, 64), (32, 128, 512)),
        ((1, 65537, 64), (32, 129, 512)),
        ((1, 1, 1), (8, 1, 1)),
    ],
)
def test_layout(kernels, shape, expected):
    assert layout(kernels, *shape) == expected


def test_segments_are_whole_tiles_and_none_is_empty(kernels):
    for T in (*range(1, 9000, 371), 65535, 65537, 2**30 - 1):
        for C in (1, 33, 256, 700):
            for narrowest, steps in ((8, 16), (16, 16), (8, 8), (16, 8)):
                width, segments, length = layout(kernels, 1, T, C, narrowest, steps)
                assert (segments - 1) * length < T <= segments * length
                assert segments == 1 or (length % 64 == 0 and length % (256 // width * steps) == 0)
                assert segments == 1 or segments * -(-C // width) <= 2 * 132
