"""Cases for the scan: inputs rounded to the type under test, results and gradients of one backend."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rwkv_lab.ops import wkv

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NAMES = ("y", "state", "gw", "gu", "gk", "gv", "gstate")


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    return request.param


def make_case(B=2, T=37, C=40, dtype=torch.float32, *, state=True, k=None, seed=0) -> SimpleNamespace:
    """Float64 inputs and output gradients that `dtype` represents exactly."""
    generator = torch.Generator().manual_seed(seed + 1000 * T + C)

    def normal(*shape: int, to=dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(to).double()

    sums = torch.float64 if dtype == torch.float64 else torch.float32
    start = torch.stack((normal(B, C, to=sums), normal(B, C, to=sums).abs() + 0.5, normal(B, C, to=sums)), 1)
    return SimpleNamespace(
        w=(-normal(C).exp()).to(sums).double(),
        u=normal(C, to=sums),
        k=(normal(B, T, C) if k is None else k(normal(B, T, C))).to(dtype).double(),
        v=normal(B, T, C),
        state=start if state else None,
        gy=normal(B, T, C),
        gstate=normal(B, 3, C, to=sums),
        dtype=dtype,
    )


def results(case, backend, device="cpu", dtype=None, den_eps=0.0, k_max=None) -> dict[str, Tensor]:
    """Outputs and gradients, float64 on the CPU. The state enters as a e^p and b e^p do: its p carries no gradient."""
    dtype = dtype or case.dtype
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    w, u = (x.to(device, sums).requires_grad_() for x in (case.w, case.u))
    k, v = (x.to(device, dtype).requires_grad_() for x in (case.k, case.v))
    state = None if case.state is None else case.state.to(device, sums).requires_grad_()
    y, out = wkv(w, u, k, v, state, den_eps, k_max, backend=backend)
    outputs = (y, out[:, :2])
    wanted = (w, u, k, v) if state is None else (w, u, k, v, state)
    grads = torch.autograd.grad(outputs, wanted, (case.gy.to(y), case.gstate[:, :2].to(out)))
    return {name: x.detach().double().cpu() for name, x in zip(NAMES, (y, out, *grads), strict=False)}


def distances(found: dict[str, Tensor], expected: dict[str, Tensor], floor: float = 1e-2) -> dict[str, float]:
    """Norm of the difference over that of the expected, by name; for small gradients over `floor` times that of gv."""
    least = floor * float(expected["gv"].norm())
    scales = {name: max(float(e.norm()), least if name.startswith("g") else 0.0, 1e-30) for name, e in expected.items()}
    return {name: float((found[name] - e).norm()) / scales[name] for name, e in expected.items()}


@pytest.fixture
def scan() -> SimpleNamespace:
    return SimpleNamespace(case=make_case, results=results, distances=distances)
