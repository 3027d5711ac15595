"""The operator inside torch: opcheck, torch.compile, autocast, checks before raw pointers."""

import pytest
import torch

from rwkv_lab.ops import resolve_backend, wkv


@pytest.fixture
def inputs(device):
    resolve_backend("native", device)
    generator = torch.Generator().manual_seed(0)
    w, u, k, v, state = (
        torch.randn(*s, generator=generator).to(device) for s in [(8,), (8,), (2, 19, 8), (2, 19, 8), (2, 3, 8)]
    )
    return [x.requires_grad_() for x in (-w.exp(), u, k, v, state.abs())]


@pytest.mark.parametrize("with_state", [False, True])
def test_opcheck(inputs, with_state):
    *rest, state = inputs
    torch.library.opcheck(
        torch.ops.rwkv_lab.wkv_fwd.default,
        (*rest, state if with_state else None, 1e-8, 60.0 if with_state else None, True),
    )


def test_opcheck_backward(inputs):
    w, u, k, v, state = (x.detach() for x in inputs)
    _, _, checkpoints = torch.ops.rwkv_lab.wkv_fwd(w, u, k, v, state, 0.0, None, True)
    torch.library.opcheck(
        torch.ops.rwkv_lab.wkv_bwd.default, (w, u, k, v, checkpoints, torch.randn_like(k), state, 0.0, None)
    )


def test_compiles_into_one_graph(inputs):
    def loss(*args):
        y, state = wkv(*args, 1e-8, 60.0)
        return y.square().sum() + state[:, :2].sum()

    expected = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*inputs), inputs)
    for x, e in zip(found, expected, strict=True):
        torch.testing.assert_close(x, e)


def test_autocast_keeps_the_vectors_in_float32(device):
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 32).to(device)
    w = torch.full((16,), -0.5, device=device, requires_grad=True)
    x = torch.randn(2, 9, 16, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        k, v = linear(x).chunk(2, dim=-1)
        y, state = wkv(w, w, k, v, backend="native")
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    y.float().sum().backward()
    assert w.grad.dtype == torch.float32 and w.grad.isfinite().all() and linear.weight.grad.isfinite().all()
    expected, _ = wkv(w, w, k.double(), v.double(), backend="reference")
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=1e-2)


def test_only_what_needs_a_gradient_gets_one(inputs):
    w, u, k, v, _ = (x.detach() for x in inputs)
    y, state = wkv(w, u, k, v.requires_grad_())
    assert torch.autograd.grad(y.sum(), v)[0].isfinite().all()
    y, state = wkv(w, u, k, v)
    assert torch.autograd.grad(state[:, :2].sum(), v)[0].isfinite().all()
    with torch.no_grad():
        assert not wkv(w, u, k, v)[0].requires_grad


def test_the_binding_refuses_what_it_cannot_read(inputs):
    w, u, k, v, state = (x.detach() for x in inputs)
    fwd = torch.ops.rwkv_lab.wkv_fwd
    wrong = {
        "not contiguous": (w, u, k.mT.contiguous().mT, v, None),
        "w has the wrong type": (w.double(), u, k, v, None),
        "v has the wrong type": (w, u, k, v.bfloat16(), None),
        "size 0 of u": (w, u[:4], k, v, None),
        "state has 2 dimensions": (w, u, k, v, state[0]),
    }
    for message, args in wrong.items():
        with pytest.raises(RuntimeError, match=message):
            fwd(*args, 0.0, None, True)
