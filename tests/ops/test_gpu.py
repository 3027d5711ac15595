"""The operators in CUDA graphs, on side streams and other cards, compiled by inductor; Toeplitz products."""

import pytest
import torch

from rwkv_lab.ops import resolve_backend, wkv
from rwkv_lab.ops.toeplitz import toeplitz_mix

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def inputs(device: str, B: int = 2, T: int = 130, C: int = 40, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    w, u, k, v = (torch.randn(s, generator=generator) for s in [(C,), (C,), (B, T, C), (B, T, C)])
    return [x.to(device).requires_grad_() for x in (-w.exp(), u, k, v)]


def both_ways(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    y, _ = wkv(*tensors, backend="native")
    return [y, *torch.autograd.grad(y.square().sum(), tensors)]


@pytest.mark.gpu
def test_captured_in_a_graph():
    resolve_backend("native", "cuda")
    fixed, fresh = inputs("cuda"), inputs("cuda", seed=1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both_ways(fixed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both_ways(fixed)
    expected = both_ways(fresh)
    with torch.no_grad():
        for x, y in zip(fixed, fresh, strict=True):
            x.copy_(y)
    graph.replay()
    for x, e in zip(found, expected, strict=True):
        torch.testing.assert_close(x, e, rtol=0, atol=0)


@pytest.mark.gpu
def test_on_a_side_stream():
    expected = both_ways(inputs("cuda"))
    busy = torch.randn(4096, 4096, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        tensors = inputs("cuda")
        for _ in range(20):
            busy = busy @ busy / 64.0
        with torch.no_grad():
            late = [x + 0.0 * busy[0, 0].nan_to_num() for x in tensors]
        found = both_ways([x.requires_grad_() for x in late])
    side.synchronize()
    for x, e in zip(found, expected, strict=True):
        torch.testing.assert_close(x, e, rtol=0, atol=0)


@pytest.mark.gpu
def test_compiled_by_inductor_into_one_graph():
    resolve_backend("native", "cuda")
    tensors = inputs("cuda")
    w, u, k, v = tensors

    def loss(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (torch.sigmoid(k) * wkv(w, u, k, v, backend="native")[0]).square().sum()

    found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(k, v), tensors)
    for x, e in zip(found, torch.autograd.grad(loss(k, v), tensors), strict=True):
        torch.testing.assert_close(x, e, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_on_a_card_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    found = both_ways(inputs("cuda:1"))
    for x, e in zip(found, both_ways(inputs("cuda:0")), strict=True):
        torch.testing.assert_close(x.cpu(), e.cpu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(
    ("T", "precision", "tolerance"), [(37, "highest", 1e-5), (600, "highest", 1e-5), (600, "high", 5e-3)]
)
def test_toeplitz_against_float64(device, T, precision, tolerance):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, T), (3, 1, T), (3, T, 1), (2, T, 3, 5)]
    exact = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    tensors = [x.detach().to(device, torch.float32).requires_grad_() for x in exact]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        y, expected = toeplitz_mix(*tensors), toeplitz_mix(*exact)
        found = [y, *torch.autograd.grad(y.sum(), tensors)]
    finally:
        torch.set_float32_matmul_precision(before)
    for x, e in zip(found, [expected, *torch.autograd.grad(expected.sum(), exact)], strict=True):
        assert float((x.detach().double().cpu() - e.detach()).norm() / e.detach().norm()) < tolerance
