"""An update's backward pass and step, with the loss scaled where gradients are fp16 (Micikevicius et al. 2018,
arXiv 1710.03740).

float16 ends at 6e-8: the loss is multiplied by a scale before the backward pass and the gradients divided by it after.
The scale doubles after 2000 updates without an infinite gradient; an update with one is skipped and halves it.
"""

from collections.abc import Mapping, Sequence

import torch

LEAST_SCALE = 2.0**-10  # a gradient infinite even at this scale is the model's fault, not the scale's


class LossScaler:
    """Torch's dynamic loss scaling over several optimizers, which step together or not at all.

    Without ``enabled`` it scales nothing and every step is taken.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], device: str, enabled: bool):
        self._scaler = torch.amp.GradScaler(torch.device(device).type, enabled=enabled)
        self._all = _Together(optimizers)
        self.skipped = 0  # updates skipped so far, all sessions of the run together

    @property
    def enabled(self) -> bool:
        return self._scaler.is_enabled()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of ``loss``, times the scale, to the parameters'."""
        self._scaler.scale(loss).backward()

    def unscale(self) -> None:
        """Divide the gradients by the scale; once an update, before they are clipped."""
        self._scaler.unscale_(self._all)  # type: ignore[arg-type]

    def may_skip(self) -> bool:
        """Return whether an infinite gradient is a reason to skip the update rather than to end the run."""
        return self.enabled and self._scaler.get_scale() > LEAST_SCALE

    def step(self) -> None:
        """Take the step of every optimizer, or of none if a gradient is infinite or NaN; clear the gradients."""
        before = self._all.steps
        self._scaler.step(self._all)  # type: ignore[arg-type]
        self._scaler.update()
        self.skipped += int(self._all.steps == before)
        self._all.zero_grad()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the state a resumed run needs, by name; nothing unless ``enabled``."""
        state = self._scaler.state_dict()
        kept = {"scaler.scale": "scale", "scaler.growth_tracker": "_growth_tracker"} if self.enabled else {}
        return {name: torch.tensor(float(state[key]), dtype=torch.float64) for name, key in kept.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor], skipped: int) -> None:
        """Put back what ``tensors`` gave, and the number of updates skipped before."""
        self.skipped = skipped
        if self.enabled:
            state = self._scaler.state_dict()
            state |= {"scale": tensors["scaler.scale"].item()}
            state |= {"_growth_tracker": int(tensors["scaler.growth_tracker"].item())}
            self._scaler.load_state_dict(state)


class _Together:
    """Several optimizers as the one that torch's scaler knows."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]):
        self._optimizers = optimizers
        self.steps = 0

    @property
    def param_groups(self) -> list[dict]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        self.steps += 1
        for optimizer in self._optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
