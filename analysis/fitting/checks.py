"""What cannot be fitted is refused in one sentence."""

from collections.abc import Sequence

import numpy as np

from analysis.curves import LossCurve
from analysis.fitting import windows
from analysis.laws.registry import LAWS, NAMED
from rwkv_lab.config.errors import UserError, nearest

TIERS = 5  # parts a run is cut into to see whether its loss rises


def check_law(law: str) -> None:
    known = ("auto", *NAMED)
    if law not in known:
        raise UserError(f"law: unknown law '{law}'{nearest(law, known)}; choose one of {', '.join(known)}")


def check_window(window: object) -> None:
    if window != "auto" and (isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 0):
        raise UserError(f"window: must be 'auto' or the first step, a whole number from 0 on, not {window!r}")


def check_curves(curves: Sequence[LossCurve], law: str, first: int) -> None:
    """Refuses curves that cannot be fitted jointly from step ``first`` on."""
    for key, what in (("batch_size", "batch sizes"), ("column", "columns")):
        values = {str(curve.meta[key]) for curve in curves if curve.meta.get(key) is not None}
        if len(values) > 1:
            raise UserError(f"the runs have mixed {what} ({', '.join(sorted(values))}): a fit needs one")
    unknowns = 6 if law == "auto" else len(NAMED[law].linear) + len(LAWS[law].nonlinear(1.0))
    needed = unknowns + 4
    for curve in curves:
        kept = curve.loss[curve.step >= first]
        if len(kept) < needed:
            raise UserError(
                f"{curve.name}: {len(kept)} points from step {first} on are too few for {law}: at least {needed}"
            )
        tier = max(len(kept) // TIERS, 1)
        begin, end = np.median(kept[:tier]), np.median(kept[-tier:])
        noise = np.median(np.abs(np.diff(kept))) / np.sqrt(tier)
        if end > begin + noise:
            raise UserError(f"{curve.name}: the loss rises from {begin:.4f} to {end:.4f}; no law here describes that")
    if not windows.varies(curves, first):
        raise UserError(
            "the rate is constant after warm-up in every run, so its effect is unknown: add a run that decays"
        )
