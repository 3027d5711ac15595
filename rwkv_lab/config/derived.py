"""Numbers that follow from a checked configuration."""

import math

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import whole
from rwkv_lab.config.schema import Config, TrainerConfig


def total_steps(config: Config) -> int:
    """Return the updates of the run: ``trainer.steps``, or as many as it takes to see ``trainer.tokens``."""
    trainer = config.trainer
    if trainer.steps is not None:
        return whole(trainer.steps)
    return math.ceil(whole(trainer.tokens) / tokens_per_step(config))


def check_branch(config: Config) -> None:
    """Raise UserError for a branch that begins at or after the end of the run."""
    step, total = config.branch.step, total_steps(config)
    if step is not None and step >= total:
        raise UserError(
            f"branch.step={step} must be below the length of the run, {total} updates, which counts from the start of "
            f"its parent: e.g. trainer.steps={step + step // 4 + 1}"
        )


def has_implied_parent(config: Config) -> bool:
    """Return whether the run is a branch whose parent is not named, and so is trained first."""
    return config.branch.step is not None and config.branch.parent is None


def tokens_per_step(config: Config) -> int:
    """Return the training tokens of one update."""
    return config.trainer.batch_size * config.model.ctx_len


def final_tokens(trainer: TrainerConfig) -> int | None:
    """Return how many held-out tokens are measured at the end; None for all."""
    return None if trainer.final_tokens is None else whole(trainer.final_tokens)


def check_shares(trainer: TrainerConfig, processes: int) -> None:
    """Raise UserError if the batch of an update cannot be shared equally by so many ``processes``."""
    parts = trainer.accumulate * processes
    if trainer.batch_size % parts:
        sharing = f"{processes} processes with " if processes > 1 else ""
        raise UserError(
            f"trainer.batch_size={trainer.batch_size} cannot be shared equally by {sharing}"
            f"trainer.accumulate={trainer.accumulate}: choose a multiple of {parts}"
        )
