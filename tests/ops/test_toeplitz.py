"""Time weights: the folded products and the halving by FFT against the direct form."""

import pytest
import torch

from rwkv_lab.ops.toeplitz import toeplitz_mix, toeplitz_weights


def case(B=2, T=37, H=3, S=5, L=40, dtype=torch.float64):
    generator = torch.Generator().manual_seed(T)
    shapes = [(H, L), (H, 1, L), (H, L, 1), (B, T, H, S)]
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def direct(w, alpha, beta, x):
    return torch.einsum("htu,buhs->bths", toeplitz_weights(w, alpha, beta, x.shape[1]), x)


def test_weights_are_those_of_the_definition():
    w, alpha, beta, _ = case()
    W = toeplitz_weights(w, alpha, beta, 37)
    for t, u in [(0, 0), (36, 0), (36, 36), (20, 13)]:
        torch.testing.assert_close(W[:, t, u], w[:, 39 - (t - u)] * alpha[:, 0, u] * beta[:, t, 0])
    assert (W.triu(1) == 0).all()


@pytest.mark.parametrize("T", [1, 2, 3, 17, 37, 40])
@pytest.mark.parametrize("longest_piece", [1, 3, 64])
@pytest.mark.parametrize("longest_product", [0, 3, 64])
def test_equals_the_direct_form_with_gradients(T, longest_piece, longest_product):
    inputs = case(T=T)
    expected = direct(*inputs)
    found = toeplitz_mix(*inputs, longest_piece, longest_product)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gy = torch.randn_like(expected)
    for x, e in zip(torch.autograd.grad(found, inputs, gy), torch.autograd.grad(expected, inputs, gy), strict=True):
        torch.testing.assert_close(x, e, rtol=1e-11, atol=1e-11)


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda *x: toeplitz_mix(*x, 2, 2), case(B=1, T=9, H=2, S=2, L=10))


def test_default_crossover_in_float32():
    inputs = case(T=600, L=600, dtype=torch.float32)
    expected = direct(*(x.double() for x in inputs))
    error = (toeplitz_mix(*inputs) - expected).norm() / expected.norm()
    assert error < 1e-6


def test_a_large_future_value_does_not_leak_into_the_past():
    w, alpha, beta, x = (z.detach() for z in case(T=600, L=600, dtype=torch.float32))
    before = toeplitz_mix(w, alpha, beta, x)
    x[:, 400:] *= 1e12
    after = toeplitz_mix(w, alpha, beta, x)
    torch.testing.assert_close(after[:, :400], before[:, :400], rtol=1e-5, atol=1e-5)


def test_autocast_and_half_precision_values_are_summed_in_float32():
    inputs = [x.detach().float().requires_grad_() for x in case()]
    expected = toeplitz_mix(*inputs)
    gradients = torch.autograd.grad(expected, inputs, torch.ones_like(expected))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = toeplitz_mix(*inputs)
        again = torch.autograd.grad(found, inputs, torch.ones_like(found))
    for one, other in zip((found, *again), (expected, *gradients), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    half = toeplitz_mix(*inputs[:3], inputs[3].bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.2)
