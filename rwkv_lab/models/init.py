"""Initial values, each function drawing from the generator it is given and nothing else. All work in place."""

import math
from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn

from rwkv_lab.models.blocks.tricks import TokenShift
from rwkv_lab.models.lm import LM


def ratio(part: float, whole: float) -> float:
    """part / whole, and 0 where whole is 0: the formulas over layers, channels and heads at their smallest sizes."""
    return part / whole if whole else 0.0


def orthogonal(weight: Tensor, gain: float, generator: Generator) -> None:
    """Orthogonal rows or columns times `gain`; all zero for gain 0, which draws nothing."""
    if gain == 0:
        nn.init.zeros_(weight)
    else:
        nn.init.orthogonal_(weight, gain, generator=generator)


def orthogonal_linears(model: nn.Module, scales: Mapping[str, float], generator: Generator) -> None:
    """Linear weights [out,in] orthogonal with gain scale * max(1, sqrt(out/in)), biases 0.

    scales names a layer by the end of its path (`att.key`); every other layer has scale 1.
    """
    for name, linear in _linears(model):
        scale = next((value for end, value in scales.items() if f".{name}".endswith(f".{end}")), 1.0)
        out, into = linear.weight.shape
        orthogonal(linear.weight, scale * math.sqrt(max(1.0, out / into)), generator)


def normal_linears(model: nn.Module, std: float, generator: Generator) -> None:
    """Linear weights normal with standard deviation `std`, biases 0."""
    for _, linear in _linears(model):
        linear.weight.normal_(0.0, std, generator=generator)


def _linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers by path, their biases set to 0."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for _, linear in found:
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    return found


def norms(model: nn.Module) -> None:
    """Every LayerNorm to weight 1, bias 0."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()


def orthogonal_embedding(model: LM, own_scale: float, generator: Generator) -> None:
    """The embedding [V,C] of an orthogonal recipe: gain sqrt(max(V,C)), which is unit scale, times `own_scale`.

    model.small_init_emb overrides the recipe: true draws from U(-1e-4, 1e-4), false keeps unit scale.
    """
    weight = model.emb.weight
    if model.config.small_init_emb:
        weight.uniform_(-1e-4, 1e-4, generator=generator)
        return
    scale = own_scale if model.config.small_init_emb is None else 1.0
    orthogonal(weight, scale * math.sqrt(max(weight.shape)), generator)


def normal_embedding(model: LM, own_std: float, generator: Generator) -> None:
    """The embedding [V,C] of a normal recipe, model.small_init_emb as in `orthogonal_embedding`."""
    if model.config.small_init_emb:
        model.emb.weight.uniform_(-1e-4, 1e-4, generator=generator)
    else:
        std = own_std if model.config.small_init_emb is None else 1.0
        model.emb.weight.normal_(0.0, std, generator=generator)


def time_factors(model: nn.Module) -> None:
    """Factors per position (time_alpha, time_beta, time_gamma, time_out) to 1."""
    for name, parameter in model.named_parameters():
        if name.endswith(("time_alpha", "time_beta", "time_gamma", "time_out")):
            nn.init.ones_(parameter)


def halved_shifts(model: nn.Module) -> None:
    """Every learned token shift as in v2: half the channels from the previous token, the others from this one."""
    for module in model.modules():
        if isinstance(module, TokenShift):
            for share in module.parameters():
                share.fill_(1.0)
                share[: module.n_shifted] = 0.0


def channel_ramp(C: int) -> Tensor:
    """i / (C-1) for channel i: [C] from 0 to 1, float64."""
    return torch.arange(C, dtype=torch.float64) / max(C - 1, 1)


def layer_ramp_shifts(model: LM) -> None:
    """The learned token shifts of v3 and v4: deeper layers see less of the previous token, v least and r most of it."""
    C, L = model.config.n_embd, model.config.n_layer
    ramp = torch.arange(C, dtype=torch.float64) / C
    for layer, block in enumerate(model.blocks):
        power = 1.0 - layer / L
        for shift in block.modules():
            if isinstance(shift, TokenShift):
                in_time_mix = "v" in shift.roles
                values = {
                    "time_mix_k": ramp**power,
                    "time_mix_v": ramp**power + 0.3 * ratio(layer, L - 1),
                    "time_mix_r": ramp ** (power / 2 if in_time_mix else power),
                }
                for name, parameter in shift.named_parameters():
                    parameter.copy_(values[name])
