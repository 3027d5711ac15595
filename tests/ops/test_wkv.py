"""The native scan against the float64 reference, on the CPU always and on a GPU where there is one."""

import pytest
import torch

from rwkv_lab.config.errors import UserError
from rwkv_lab.ops import resolve_backend, wkv

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
SHAPES = [(1, 1, 1), (2, 3, 32), (3, 63, 33), (2, 65, 64), (1, 130, 96), (2, 257, 50)]


@pytest.fixture(autouse=True)
def poisoned():
    """Every fresh tensor starts as NaN, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def skip_unless_supported(device, dtype):
    if (device, dtype) in {("cuda", torch.float64), ("cpu", torch.float16)}:
        pytest.skip("this pair runs through the reference")


def assert_close(scan, case, device, tolerance=None, floor=1e-2, **kwargs):
    assert resolve_backend("native", device) == "native"
    expected = scan.results(case, "reference", dtype=torch.float64, **kwargs)
    found = scan.results(case, "native", device, **kwargs)
    tolerance = tolerance or TOLERANCE[case.dtype]
    for name, distance in scan.distances(found, expected, floor).items():
        assert distance < tolerance, f"{name}: {distance}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("state", [False, True])
def test_shapes_and_types(scan, device, shape, dtype, state):
    skip_unless_supported(device, dtype)
    assert_close(scan, scan.case(*shape, dtype, state=state), device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("den_eps", "k_max"), [(1e-16, 60.0), (1e-8, 60.0), (0.3, 0.5)])
def test_null_token_and_cut_off(scan, device, dtype, den_eps, k_max):
    assert_close(scan, scan.case(2, 70, 40, dtype), device, den_eps=den_eps, k_max=k_max)


def test_long(scan, device):
    assert_close(scan, scan.case(1, 1025, 33), device, tolerance=2e-5)


# on a GPU so few channels take more than one segment of time
LONG = [
    ((1, 16384, 40), torch.float32, 2e-5),
    ((1, 9001, 33), torch.bfloat16, 6e-3),
    ((2, 8191, 130), torch.float32, 2e-5),
    ((1, 5000, 20), torch.float16, 1e-3),
]


@pytest.mark.parametrize(("shape", "dtype", "tolerance"), LONG)
@pytest.mark.parametrize("state", [False, True])
def test_very_long(scan, device, shape, dtype, tolerance, state):
    """Against the float64 kernel, itself compared with the reference above: the reference takes a minute."""
    skip_unless_supported(device, dtype)
    case = scan.case(*shape, dtype, state=state)
    kwargs = {"den_eps": 1e-8, "k_max": 1.5}
    expected = scan.results(case, "native", dtype=torch.float64, **kwargs)
    found = scan.results(case, "native", device, **kwargs)
    for name, distance in scan.distances(found, expected).items():
        assert distance < tolerance, f"{name}: {distance}"


@pytest.mark.parametrize("spread", [50, 61, 148, 1e4])
def test_very_long_with_extreme_keys(scan, device, spread):
    """Keys jump at multiples of 64, where segments of time may begin."""
    case = scan.case(1, 8200, 33)
    case.k[:, 63::64], case.k[:, 64::64] = 0.5 * spread, -0.5 * spread
    expected = scan.results(case, "native", dtype=torch.float64, den_eps=1e-8)
    found = scan.results(case, "native", device, den_eps=1e-8)
    for name, distance in scan.distances(found, expected, floor=1.0).items():
        assert distance < 2e-5 + 2e-6 * spread, f"{name}: {distance}"


def test_very_long_repeats_bit_for_bit(scan, device):
    case = scan.case(1, 8200, 33)
    first, again = (scan.results(case, "native", device) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


KEYS = {
    "all equal": torch.zeros_like,
    "all 1e4": lambda k: torch.full_like(k, 1e4),
    "all -1e4": lambda k: torch.full_like(k, -1e4),
    "1e4 or -1e4": lambda k: 1e4 * k.sign(),
    "spread 50": lambda k: 25 * k.sign(),
    "spread 57": lambda k: 28.5 * k.sign(),
    "spread 61": lambda k: 30.5 * k.sign(),
    "spread 148": lambda k: 74 * k.sign(),
    "falling": lambda k: k + torch.linspace(100, -100, k.shape[1], dtype=k.dtype)[:, None],
    "rising": lambda k: k + torch.linspace(-100, 100, k.shape[1], dtype=k.dtype)[:, None],
    "one spike": lambda k: torch.where(torch.arange(k.shape[1])[:, None] == 20, 200.0, k),
}


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("name", KEYS)
def test_extreme_keys(scan, device, name, state):
    case = scan.case(2, 150, 40, state=state, k=KEYS[name])
    # the rounding of a large exponent is the relative error of its weight, and sums of exponents gather some
    tolerance = 3e-6 + 2e-6 * float(case.k.abs().max())
    assert_close(scan, case, device, tolerance, floor=1.0, den_eps=1e-8)


def test_masked_token_counts_for_nothing(scan, device):
    case = scan.case(2, 40, 40)
    case.k[:, 7] = -torch.inf
    assert_close(scan, case, device)


def test_nan_is_not_swallowed(scan, device):
    case = scan.case(2, 40, 40)
    case.k[0, 20, 3] = torch.nan
    y = scan.results(case, "native", device)["y"]
    assert y[0, 20:, 3].isnan().all()
    assert y.isnan().sum() <= 40  # nothing beyond the channel of that sequence


def test_strong_decay_and_large_bonus(scan, device):
    case = scan.case(2, 150, 40)
    case.w = torch.linspace(-3000, -1e-4, 40).double()
    case.u = torch.linspace(-100, 100, 40).double().flip(0)
    assert_close(scan, case, device, tolerance=3e-5)


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    w, u, k, v, state = (
        torch.randn(*s, generator=generator, dtype=torch.float64)
        for s in [(3,), (3,), (1, 19, 3), (1, 19, 3), (1, 3, 3)]
    )
    state[:, 1] = state[:, 1].abs() + 0.5
    inputs = [x.requires_grad_() for x in (-w.exp(), u, k, v, state)]

    # the sums themselves, a e^p and b e^p: the scale p is a constant to autograd
    def sums(*args):
        y, out = wkv(*args, 1e-2, 0.7, backend="native")
        return y, out[:, :2] * out[:, 2:].exp()

    assert torch.autograd.gradcheck(sums, inputs)


def test_split_equals_whole_with_gradients(scan, device):
    case = scan.case(2, 100, 40)
    whole = scan.results(case, "native", device)

    w, u, k, v, state = (
        x.to(device, torch.float32).requires_grad_() for x in (case.w, case.u, case.k, case.v, case.state)
    )
    pieces, carried = [], state
    for kk, vv in zip(k.split([1, 33, 16, 50], 1), v.split([1, 33, 16, 50], 1), strict=True):
        y, carried = wkv(w, u, kk, vv, carried, backend="native")
        pieces.append(y)
    y = torch.cat(pieces, 1)
    grads = torch.autograd.grad((y, carried[:, :2]), (w, u, k, v, state), (case.gy.to(y), case.gstate[:, :2].to(y)))
    found = dict(zip(whole, (x.detach().double().cpu() for x in (y, carried, *grads)), strict=True))
    for name, distance in scan.distances(found, whole).items():
        assert distance < 3e-6, f"{name}: {distance}"


def test_state_is_that_of_the_original(scan, device):
    """p is the running maximum of v4's recurrence, not just any scale."""
    case = scan.case(2, 150, 40)
    p = case.state[:, 2]
    for k in case.k.unbind(1):
        p = torch.maximum(p + case.w, k)
    found = scan.results(case, "native", device)["state"][:, 2]
    assert torch.allclose(found, p, rtol=0, atol=1e-4)


def test_non_contiguous_inputs(scan, device):
    case = scan.case(2, 37, 40)
    expected = scan.results(case, "native", device)
    k, v = (x.to(device, torch.float32).mT.contiguous().mT.requires_grad_() for x in (case.k, case.v))
    both = torch.stack((case.w, case.u), 1).to(device, torch.float32)
    state = case.state.to(device, torch.float32).mT.contiguous().mT
    assert not k.is_contiguous() and not state.is_contiguous()
    y, out = wkv(both[:, 0], both[:, 1], k, v, state, backend="native")
    gy = case.gy.to(y).mT.contiguous().mT
    gk, gv = torch.autograd.grad((y, out[:, :2]), (k, v), (gy, case.gstate[:, :2].to(y)))
    for name, found in {"y": y, "state": out, "gk": gk, "gv": gv}.items():
        assert torch.equal(found.detach().double().cpu(), expected[name]), name


def test_repeats_bit_for_bit_whatever_the_threads(scan, device):
    case = scan.case(3, 150, 200)
    first = scan.results(case, "native", device)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = scan.results(case, "native", device)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_empty_sequence_returns_the_state(device):
    state = torch.randn(2, 3, 8, device=device)
    none = torch.empty(2, 0, 8, device=device)
    y, out = wkv(-torch.ones(8, device=device), torch.zeros(8, device=device), none, none, state)
    assert y.shape == (2, 0, 8) and torch.equal(out, state)


def test_types_without_a_kernel_go_through_the_reference(device):
    dtype = torch.float16 if device == "cpu" else torch.float64
    k = torch.randn(1, 5, 8, device=device, dtype=dtype)
    w = -torch.ones(8, device=device)
    found, _ = wkv(w, w, k, k, backend="native")
    assert torch.equal(found, wkv(w, w, k, k, backend="reference")[0])


def test_mistakes_are_sentences():
    k = torch.zeros(1, 4, 8)
    with pytest.raises(UserError, match=r"w and u must be \[C\]"):
        wkv(torch.zeros(7), torch.zeros(8), k, k)
    with pytest.raises(UserError, match="'fast' is not a backend; choose one of auto, native, reference"):
        wkv(torch.zeros(8), torch.zeros(8), k, k, backend="fast")
    with pytest.raises(UserError, match="no kernel for meta"):
        resolve_backend("native", "meta")
