"""Initial values. Each function fills parameters in place and draws from the generator it is given, nothing else.

A recipe names the scales of linear layers by the kind of module that owns them: a channel mix starts as a channel mix
wherever it stands.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Generator, Tensor, nn

from rwkv_lab.models.blocks.token_shift import TokenShift
from rwkv_lab.models.lm import LM

Scales = Mapping[type[nn.Module], Mapping[str, float]]  # kind of module -> name of its linear layer -> scale


def ratio(part: float, whole: float) -> float:
    """part / whole, and 0 if whole is 0: the formulas over layers, channels and heads at their smallest sizes."""
    return part / whole if whole else 0.0


def orthogonal(weight: Tensor, gain: float, generator: Generator) -> None:
    """Orthogonal rows or columns times ``gain``; all zero for gain 0, which draws nothing."""
    if gain == 0:
        nn.init.zeros_(weight)
    else:
        nn.init.orthogonal_(weight, gain, generator=generator)


def orthogonal_linears(model: nn.Module, scales: Scales, generator: Generator) -> None:
    """Linear weights [out,in] orthogonal with gain scale * max(1, sqrt(out/in)), biases 0; a layer not in ``scales``
    has scale 1."""
    for owner, name, linear in linears(model):
        named: Mapping[str, float] = next((table for kind, table in scales.items() if isinstance(owner, kind)), {})
        out, into = linear.weight.shape
        orthogonal(linear.weight, named.get(name, 1.0) * math.sqrt(max(1.0, out / into)), generator)


def normal_linears(model: nn.Module, std: float, generator: Generator) -> None:
    """Linear weights normal with standard deviation ``std``, biases 0."""
    for _, _, linear in linears(model):
        linear.weight.normal_(0.0, std, generator=generator)


def linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Every linear layer, its bias set to 0, with the module that owns it and its name there."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            parent, _, name = path.rpartition(".")
            yield model.get_submodule(parent), name, module


def norms(model: nn.Module) -> None:
    """Every LayerNorm to weight 1, bias 0."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()


def orthogonal_embedding(model: LM, own_scale: float, generator: Generator) -> None:
    """The embedding [V,C] of an orthogonal recipe: gain sqrt(max(V,C)), which is unit scale, times ``own_scale``.

    model.emb_init=small draws from U(-1e-4, 1e-4) instead; unit keeps unit scale.
    """
    weight, start = model.emb.weight, model.config.embedding_start
    if start == "small":
        weight.uniform_(-1e-4, 1e-4, generator=generator)
    else:
        orthogonal(weight, (own_scale if start == "recipe" else 1.0) * math.sqrt(max(weight.shape)), generator)


def normal_embedding(model: LM, own_std: float, generator: Generator) -> None:
    """The embedding [V,C] of a normal recipe; model.emb_init as in ``orthogonal_embedding``."""
    weight, start = model.emb.weight, model.config.embedding_start
    if start == "small":
        weight.uniform_(-1e-4, 1e-4, generator=generator)
    else:
        weight.normal_(0.0, own_std if start == "recipe" else 1.0, generator=generator)


def time_factors(model: nn.Module) -> None:
    """Factors per position (time_alpha, time_beta, time_gamma, time_out) to 1."""
    for name, parameter in model.named_parameters():
        if name.endswith(("time_alpha", "time_beta", "time_gamma", "time_out")):
            nn.init.ones_(parameter)


def halved_shifts(model: nn.Module) -> None:
    """Every learned token shift as in v2: half the channels, or the share given, from the previous token."""
    for module in model.modules():
        if isinstance(module, TokenShift):
            for m, n in zip(module.parameters(), module.n_shifted, strict=False):
                m.fill_(1.0)
                m[:n] = 0.0


def channel_ramp(C: int) -> Tensor:
    """i / (C-1) for channel i: [C] from 0 to 1, float64."""
    return torch.arange(C, dtype=torch.float64) / max(C - 1, 1)


def layer_ramp_shifts(model: LM) -> None:
    """The learned token shifts of v3 and v4: deeper layers see less of the previous token, v least and r most of it.

    Those whose shares are given begin there.
    """
    halved_shifts(model)
    C, L = model.config.n_embd, model.config.n_layer
    ramp = torch.arange(C, dtype=torch.float64) / C
    for layer, block in enumerate(model.blocks):
        power = 1.0 - layer / L
        for shift in block.modules():
            if isinstance(shift, TokenShift) and not shift.own_start:
                in_time_mix = "v" in shift.roles
                values = {
                    "time_mix_k": ramp**power,
                    "time_mix_v": ramp**power + 0.3 * ratio(layer, L - 1),
                    "time_mix_r": ramp ** (power / 2 if in_time_mix else power),
                }
                for name, parameter in shift.named_parameters():
                    parameter.copy_(values[name])
