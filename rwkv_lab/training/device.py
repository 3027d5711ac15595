"""Choices for ``auto``: device, precision and threads, made once and recorded in the manifest."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import Config, TrainerConfig
from rwkv_lab.ops.memory import keep_freed_memory
from rwkv_lab.runs.provenance import processor_name, usable_cores
from rwkv_lab.util.units import count

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Resolved:
    """The choices that decide a run's bits."""

    device: str  # cpu | cuda | cuda:N
    precision: str  # fp32 | tf32 | bf16
    ops_backend: str  # native | reference
    threads: int  # torch's CPU threads
    deterministic: bool = False  # the same numbers on every run on a GPU, where torch can

    def autocast(self) -> torch.autocast:
        """Return bf16 autocast if that is the precision, else a context that does nothing."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        index = int(wanted.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            seen = torch.cuda.device_count()
            raise UserError(f"trainer.device={wanted} is not here: torch sees {seen} CUDA devices; choose cpu or auto")
    return wanted


def _precision(wanted: str, device: str) -> str:
    cuda = device.startswith("cuda")
    if wanted == "auto":
        fast = torch.cuda.get_device_capability(device) >= (8, 0) if cuda else torch.cpu._is_amx_tile_supported()
        return "bf16" if fast else "fp32"
    if wanted == "tf32" and not (cuda and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise UserError(f"trainer.precision=tf32 is not available on {device}: choose auto, fp32 or bf16")
    if wanted == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"trainer.precision=bf16 is not available on {device}: choose auto or fp32")
    return wanted


def _kernel_cache(named: str | None) -> Path | None:
    return Path(named).expanduser().absolute() if named else None


def resolve(config: Config, earlier: dict | None = None) -> Resolved:
    """Decides every ``auto``. A resumed run keeps the ``earlier`` choices; a UserError where this machine lacks one."""
    from rwkv_lab.ops import resolve_backend

    trainer: TrainerConfig = config.trainer
    device = _device(trainer.device)
    now = Resolved(
        device=device,
        precision=_precision(trainer.precision, device),
        ops_backend=resolve_backend(config.ops.backend, device, _kernel_cache(config.ops.cache_dir)),
        threads=trainer.threads or (earlier or {}).get("threads") or torch.get_num_threads(),
        deterministic=trainer.deterministic,
    )
    for key, before in (earlier or {}).items():
        if asdict(now).get(key, before) != before:
            raise UserError(
                f"the run was started with {key} {before} and would go on with {asdict(now)[key]}, which changes its "
                "numbers: resume it on the same kind of machine, or start afresh with rerun=true"
            )
    return now


def another_card(before: dict, resolved: Resolved) -> str | None:
    """A sentence if a run goes on on another model of GPU than its manifest's ``hardware`` names, else None."""
    now = hardware(resolved)
    if now["device"] != "cuda" or before.get("device") != "cuda" or now["name"] == before.get("name"):
        return None
    return f"the run was started on {before.get('name')} and goes on on {now['name']}: its last digits will differ"


def apply(resolved: Resolved) -> None:
    """Set torch's threads, matmul precision and determinism for this process, and keeps its freed memory.

    Under bf16 on a GPU the products that stay in float32, such as RWKV v1's time weights, take TF32.
    """
    torch.set_num_threads(resolved.threads)
    # Mapping fresh pages costs a training step on the CPU 2 to 12 % of its time.
    keep_freed_memory()
    chosen = torch.device(resolved.device)
    fast = resolved.precision == "tf32" or (resolved.precision == "bf16" and chosen.type == "cuda")
    torch.set_float32_matmul_precision("high" if fast else "highest")
    _apply_determinism(resolved.deterministic)
    # Plain cuda is the current device, which torchrun's processes have chosen already.
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)


def _apply_determinism(wanted: bool) -> None:
    # What has no deterministic form is one warning, not the end of the run.
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = not wanted  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = wanted
    if wanted:
        # cuBLAS reads it when it starts; without it, its workspaces make sums vary.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def hardware(resolved: Resolved) -> dict:
    """Return the machine as the manifest records it; memory in bytes."""
    cuda = resolved.device.startswith("cuda")
    properties = torch.cuda.get_device_properties(resolved.device) if cuda else None
    return {
        "device": "cuda" if cuda else "cpu",
        "name": properties.name if properties else processor_name(),
        "cores": usable_cores(),
        "memory_bytes": properties.total_memory if properties else _memory_bytes(),
    }


def _memory_bytes() -> int | None:
    names = os.sysconf_names
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory_bytes(resolved: Resolved) -> int:
    """The most memory used so far: allocated on the GPU, or resident for this process."""
    if resolved.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(resolved.device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def estimate(config: Config, parameters: "Mapping[str, nn.Parameter]", vocab_size: int) -> dict[str, float]:
    """Return bytes by what takes them: weights with gradients, optimizer state, activations and logits.

    Activations are those one micro-batch keeps: about 34 values a token, layer and channel in 16 bits (Korthikanti et
    al. 2022, arXiv 2205.05198, without attention's quadratic part). Of the logits there are three fp32 copies.
    """
    trainer, model = config.trainer, config.model
    tokens = trainer.batch_size // trainer.accumulate * model.ctx_len
    width = 2 if trainer.precision == "bf16" else 4
    return {
        "weights and gradients": 8.0 * sum(parameter.numel() for parameter in parameters.values()),
        "optimizer state": float(config.optimizer.state_bytes(parameters)),
        "activations": tokens * 34 / 2 * model.n_layer * model.n_embd * width,
        "logits": tokens * 3.0 * vocab_size * 4,
    }


def advice(config: Config, parameters: "Mapping[str, nn.Parameter]", vocab_size: int) -> str:
    """Return a sentence on a run that is out of memory: what to change, and what is large."""
    parts = sorted(estimate(config, parameters, vocab_size).items(), key=lambda part: -part[1])
    shown = ", ".join(f"{name} {count(size)}B" for name, size in parts)
    smaller = (
        ""
        if parts[0][0] in ("activations", "logits")
        else f", or choose a smaller model or vocabulary (now {vocab_size})"
    )
    return (
        f"out of memory: lower trainer.batch_size, or raise trainer.accumulate{smaller}; of about "
        f"{count(sum(size for _, size in parts))}B, {shown}"
    )
