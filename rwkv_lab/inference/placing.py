"""Where a trained model runs, and in what precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rwkv_lab.config.errors import UserError

if TYPE_CHECKING:
    from rwkv_lab.models.lm import LM


def chosen_device(device: str) -> str:
    """Return ``cpu`` or ``cuda`` for auto, cpu or cuda; UserError for a device that torch does not see."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device; choose auto or cpu")
    return device


@contextmanager
def placed(model: "LM", device: str, precision: str | None = None) -> "Iterator[LM]":
    """Yield ``model`` in float32 on ``device``, for evaluation; bf16 computes matrix products in bfloat16 (fp32)."""
    import torch

    on = chosen_device(device)
    model = model.float().to(on).eval()
    with torch.no_grad(), torch.autocast(on, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield model
