"""Choices for ``auto``: device, precision and threads, made once and recorded in the manifest."""

import functools
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import Config, TrainerConfig
from rwkv_lab.models.lm import LM
from rwkv_lab.ops.memory import keep_freed_memory
from rwkv_lab.runs.provenance import processor_name, usable_cores
from rwkv_lab.util.console import warn

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Training FLOPs in the blocks from which compiling them pays: minutes of a card, an hour or two of some CPU cores.
COMPILE_FROM = {"cuda": 1e17, "cpu": 5e14}


@dataclass(frozen=True)
class Resolved:
    """The choices that decide a run's bits."""

    device: str  # cpu | cuda | cuda:N
    precision: str  # fp32 | tf32 | bf16 | fp16
    ops_backend: str  # native | reference
    threads: int  # torch's CPU threads
    deterministic: bool = False  # the same numbers on every run on a GPU, where torch can
    compile: bool = False  # the blocks, by torch.compile

    def autocast(self) -> torch.autocast:
        """Return autocast to bf16 or fp16 if that is the precision, else a context that does nothing."""
        kind = torch.device(self.device).type
        dtype = HALVES.get(self.precision)
        return torch.autocast(kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


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
        raise UserError(f"trainer.precision=tf32 is not available on {device}: choose auto, fp32, bf16 or fp16")
    if wanted == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"trainer.precision=bf16 is not available on {device}: choose auto, fp32 or fp16")
    return wanted


def _kernel_cache(named: str | None) -> Path | None:
    return Path(named).expanduser().absolute() if named else None


def _compile(config: Config, device: str) -> bool:
    """Return whether to compile the blocks; under auto only where it pays and torch.compile works here."""
    wanted = config.trainer.compile
    if wanted != "auto":
        return wanted == "true"
    from rwkv_lab.config.derived import tokens_per_step, total_steps
    from rwkv_lab.models import flops_per_token, skeleton

    tokens = total_steps(config) * tokens_per_step(config)
    if tokens * flops_per_token(skeleton(config.model, 1)) < COMPILE_FROM[torch.device(device).type]:
        return False
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:
        warn(f"torch.compile does not work here ({str(error).splitlines()[0]}); the run goes on without it")
        return False
    return True


def dress(model: LM, trainer: TrainerConfig, resolved: Resolved) -> None:
    """Let the blocks of ``model`` compute in training as the configuration has it: compiled, and again in backward.

    Where no gradient is kept, as in evaluation, whose shapes vary, they compute as they are.
    """
    for block in model.blocks:
        plain = block.forward
        trained = torch.compile(plain, dynamic=False) if resolved.compile else plain
        if trainer.activation_checkpointing:
            trained = functools.partial(checkpoint, trained, use_reentrant=False, preserve_rng_state=False)
        if trained is not plain:
            block.forward = functools.partial(_forward, plain, trained)


def _forward(plain: Callable[..., Any], trained: Callable[..., Any], *inputs: Any) -> Any:
    return trained(*inputs) if torch.is_grad_enabled() else plain(*inputs)


def resolve(config: Config, earlier: dict | None = None) -> Resolved:
    """Decides every ``auto``. A resumed run keeps the ``earlier`` choices; a UserError where this machine lacks one."""
    from rwkv_lab.ops import resolve_backend

    trainer: TrainerConfig = config.trainer
    device = _device(trainer.device)
    kept = earlier or {}
    precision = kept.get("precision") if trainer.precision == "auto" else None
    # A run begun before there was a choice was not compiled.
    compiled = kept.get("compile", False)
    now = Resolved(
        device=device,
        precision=_precision(precision or trainer.precision, device),
        ops_backend=resolve_backend(config.ops.backend, device, _kernel_cache(config.ops.cache_dir)),
        threads=trainer.threads or kept.get("threads") or torch.get_num_threads(),
        deterministic=trainer.deterministic,
        compile=compiled if kept and trainer.compile == "auto" else _compile(config, device),
    )
    for key, before in kept.items():
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
