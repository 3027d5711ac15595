"""Numbers that follow from a checked configuration."""

import math

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import Config, TrainerConfig


def total_steps(config: Config) -> int:
    """Return the updates of the run: ``trainer.steps``, or as many as it takes to see ``trainer.tokens``."""
    trainer = config.trainer
    if trainer.steps is not None:
        return int(trainer.steps)
    return math.ceil(int(trainer.tokens or 0) / tokens_per_step(config))


def tokens_per_step(config: Config) -> int:
    """Return the training tokens of one update."""
    return config.trainer.batch_size * config.model.ctx_len


def check_shares(trainer: TrainerConfig, processes: int) -> None:
    """Raise UserError if the batch of an update cannot be shared equally by so many ``processes``."""
    parts = trainer.accumulate * processes
    if trainer.batch_size % parts:
        sharing = f"{processes} processes with " if processes > 1 else ""
        raise UserError(
            f"trainer.batch_size={trainer.batch_size} cannot be shared equally by {sharing}"
            f"trainer.accumulate={trainer.accumulate}: choose a multiple of {parts}"
        )
