"""Schedule files: what ``python -m analysis fit`` and ``optimal`` propose, read back for ``schedule=fitted``."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.kinds import Prediction


@dataclass(frozen=True)
class Proposal:
    """A proposed schedule with the loss its law predicts for the last logged step."""

    rates: list[float]  # one rate an update
    prediction: Prediction


def read_proposal(path: str | Path) -> Proposal:
    """Return the proposal inside a fit.json; UserError naming ``schedule.fit`` if it has none that can be used."""
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
            prediction=Prediction(
                final_loss=float(proposal["predicted_final_loss"]),
                interval=(low, high),
                level=float(proposal["level"]),
                column=str(proposal["column"]),
                law=str(proposal["law"]),
                kind=str(proposal["kind"]),
                fit=str(path),
            ),
        )
    except (KeyError, TypeError, ValueError):
        make = "make one with 'python -m analysis fit'"
        raise UserError(f"schedule.fit={path} does not have a proposed schedule: {make}") from None
    if not read.rates or not all(math.isfinite(rate) and rate >= 0 for rate in read.rates):
        raise UserError(f"schedule.fit={path} has rates that are missing, negative or not finite")
    return read
