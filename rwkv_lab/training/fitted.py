"""Schedule files: what ``python -m analysis fit`` and ``optimal`` propose, read back for ``schedule=fitted``."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_lab.config.errors import UserError


@dataclass(frozen=True)
class Proposal:
    """A proposed schedule with the loss its law predicts for the last logged step."""

    rates: list[float]  # one rate an update
    final_loss: float  # predicted, nats per token, of ``column``
    interval: tuple[float, float]  # around final_loss
    level: float  # probability the interval claims
    column: str  # the measured loss that was fitted: val_loss or train_loss
    law: str
    kind: str
    setup: dict[str, Any]  # of the runs fitted, as ``runs.setup`` gives it; empty if unknown


def read_proposal(path: str | Path) -> Proposal:
    """The proposal inside a fit.json; a Mistake naming ``schedule.fit`` where there is none that can be used."""
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"schedule.fit={path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"schedule.fit={path} is not JSON: give the fit.json of 'python -m analysis fit'") from None
    proposal: Any = content.get("proposal") if isinstance(content, dict) else None
    try:
        low, high = map(float, proposal["interval"])
        read = Proposal(
            rates=[float(rate) for rate in proposal["rates"]],
            final_loss=float(proposal["predicted_final_loss"]),
            interval=(low, high),
            level=float(proposal["level"]),
            column=str(proposal["column"]),
            law=str(proposal["law"]),
            kind=str(proposal["kind"]),
            setup=dict((content.get("trained") or {}).get("setup") or {}),
        )
    except (KeyError, TypeError, ValueError):
        make = "make one with 'python -m analysis fit'"
        raise UserError(f"schedule.fit={path} holds no proposed schedule: {make}") from None
    if not read.rates or not all(math.isfinite(rate) and rate >= 0 for rate in read.rates):
        raise UserError(f"schedule.fit={path} has rates that are missing, negative or no numbers")
    return read
