"""The plain torch scan against the definition, term by term in float64."""

import pytest
import torch

from rwkv_lab.ops import wkv


def convolution_form(w, u, k, v, den_eps, k_max):
    """y_t by the double sum over u <= t, exponentials as written."""
    T = k.shape[1]
    age = torch.arange(T)[:, None] - torch.arange(T)[None, :]
    log_curve = torch.where((age > 0)[..., None], (age - 1).clamp(min=0)[..., None] * w, u)
    curve = log_curve.exp() * (age >= 0)[..., None]  # [T,T,C]
    weights = curve * k.clamp(max=k_max).exp()[:, None]  # [B,T,T,C]
    return (weights * v[:, None]).sum(2) / (weights.sum(2) + den_eps)


@pytest.mark.parametrize(("den_eps", "k_max", "shift"), [(0.0, 60.0, 0.0), (1e-8, 60.0, -18.0), (1e-16, 0.5, -36.0)])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_is_the_weighted_average(scan, den_eps, k_max, shift, backend):
    case = scan.case(2, 33, 7, torch.float64, state=False, k=lambda k: k + shift)
    expected = convolution_form(case.w, case.u, case.k, case.v, den_eps, k_max)
    found, _ = wkv(case.w, case.u, case.k, case.v, None, den_eps, k_max, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_the_null_token_matters_where_keys_are_small(scan):
    case = scan.case(2, 33, 7, torch.float64, state=False, k=lambda k: k - 18)
    with_eps, without = (wkv(case.w, case.u, case.k, case.v, None, eps)[0] for eps in (1e-8, 0.0))
    assert (with_eps - without).norm() / without.norm() > 0.1


def test_state_holds_the_scaled_sums(scan):
    case = scan.case(2, 12, 7, torch.float64, state=False)
    _, state = wkv(case.w, case.u, case.k, case.v, backend="reference")
    a, b, p = state.unbind(1)
    decay = ((11 - torch.arange(12))[:, None] * case.w).exp()
    torch.testing.assert_close(b * p.exp(), (decay * case.k.exp()).sum(1))
    torch.testing.assert_close(a * p.exp(), (decay * case.k.exp() * case.v).sum(1))


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    w, u, k, v = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in [(3,), (3,), (2, 5, 3), (2, 5, 3)])
    inputs = [x.requires_grad_() for x in (-w.exp(), u, k, v)]
    assert torch.autograd.gradcheck(lambda *x: wkv(*x, None, 1e-2, 0.7, backend="reference")[0], inputs)
