"""How well the data determine a law's parameters, and which of them only together.

From the Jacobian at the minimum. These standard errors describe the noise of one fit alone; they are far too
narrow for predictions, whose intervals come from runs left out and from the spread of the laws.
"""

from collections.abc import Sequence

import numpy as np

from analysis.curves import LossCurve
from analysis.fit.fitted_law import Member, binned

STEP = 1e-4
CLOSE = 0.8  # beyond this correlation two numbers are known only together


def covariance(member: Member, curves: Sequence[LossCurve]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Standard errors by parameter, and correlations by pair; a parameter at zero has neither."""
    names = [name for name, value in member.parameters.items() if value != 0]
    data = [binned(curve, member.first, member.reference) for curve in curves]

    def losses(name: str, factor: float) -> np.ndarray:
        linear = {k: v * (factor if k == name else 1) for k, v in member.linear.items()}
        nonlinear = {k: v * (factor if k == name else 1) for k, v in member.nonlinear.items()}
        changed = Member(member.law, linear, nonlinear, member.first, member.reference, 0.0)
        return np.concatenate([changed.loss(d.path.eta, d.path.at) for d in data])

    loss = np.concatenate([d.loss for d in data])
    residual = losses("", 1.0) - loss
    jacobian = np.stack([(losses(n, 1 + STEP) - losses(n, 1 - STEP)) / (2 * STEP) for n in names], axis=1)
    rho = float(np.clip(residual[1:] @ residual[:-1] / max(residual @ residual, 1e-300), 0.0, 0.95))
    variance = float(residual @ residual) / max(len(loss) - len(names), 1) * (1 + rho) / (1 - rho)
    scale = np.linalg.norm(jacobian, axis=0)
    scale[scale == 0] = 1.0
    inverse = np.linalg.pinv((jacobian / scale).T @ (jacobian / scale))
    deviation = np.sqrt(np.maximum(np.diag(inverse), 1e-300))
    errors = np.sqrt(variance) * deviation / scale
    together = inverse / np.outer(deviation, deviation)
    return (
        {n: float(e * abs(member.parameters[n])) for n, e in zip(names, errors, strict=True)},
        {a: {b: float(together[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)},
    )


def remarks(correlations: dict[str, dict[str, float]]) -> list[str]:
    """One sentence for every pair of parameters that are known only together."""
    names = list(correlations)
    return [
        f"{a} and {b} correlate at {correlations[a][b]:+.3f}: neither is known well alone, and predictions "
        "depend little on which of the pairs along that line is taken"
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if abs(correlations[a][b]) > CLOSE
    ]
