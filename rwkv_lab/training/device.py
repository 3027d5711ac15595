"""What ``auto`` means here: device, precision and threads, chosen once and recorded in the manifest."""

from dataclasses import asdict, dataclass

import torch

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import Config, TrainerConfig
from rwkv_lab.ops.memory import keep_freed_memory
from rwkv_lab.runs.provenance import processor_name, usable_cores


@dataclass(frozen=True)
class Resolved:
    """The choices that decide a run's bits."""

    device: str  # cpu | cuda | cuda:N
    precision: str  # fp32 | tf32 | bf16
    ops_backend: str  # native | reference
    threads: int  # torch's CPU threads

    def autocast(self) -> torch.autocast:
        """bf16 autocast where that is the precision, else a context that does nothing."""
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


def resolve(config: Config, earlier: dict | None = None) -> Resolved:
    """Decides every ``auto``. A resumed run keeps the ``earlier`` choices; a Mistake where this machine lacks one."""
    from rwkv_lab.ops import resolve_backend

    trainer: TrainerConfig = config.trainer
    device = _device(trainer.device)
    now = Resolved(
        device=device,
        precision=_precision(trainer.precision, device),
        ops_backend=resolve_backend(config.ops.backend, torch.device(device)),
        threads=trainer.threads or (earlier or {}).get("threads") or torch.get_num_threads(),
    )
    for key, before in (earlier or {}).items():
        if asdict(now)[key] != before:
            raise UserError(
                f"the run was started with {key} {before} and would go on with {asdict(now)[key]}, which changes its "
                "numbers: resume it on the same kind of machine, or start afresh with rerun=true"
            )
    return now


def apply(resolved: Resolved) -> None:
    """Sets torch's threads and matmul precision for this process, and keeps its freed memory for the next step."""
    torch.set_num_threads(resolved.threads)
    # Mapping fresh pages costs a training step on the CPU 2 to 12 % of its time.
    keep_freed_memory()
    torch.set_float32_matmul_precision("high" if resolved.precision == "tf32" else "highest")
    chosen = torch.device(resolved.device)
    # Plain cuda is the current device, which torchrun's processes have chosen already.
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)


def hardware(resolved: Resolved) -> dict:
    """The machine as the manifest describes it; memory in bytes."""
    cuda = resolved.device.startswith("cuda")
    properties = torch.cuda.get_device_properties(resolved.device) if cuda else None
    return {
        "device": "cuda" if cuda else "cpu",
        "name": properties.name if properties else processor_name(),
        "cores": usable_cores(),
        "memory_bytes": properties.total_memory if properties else _memory_bytes(),
    }


def _memory_bytes() -> int | None:
    import os

    names = os.sysconf_names
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory_bytes(resolved: Resolved) -> int:
    """The most memory used so far: allocated on the GPU, or resident for this process."""
    if resolved.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
