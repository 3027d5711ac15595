"""The place where a running job asks its stop rule."""

import dataclasses
from collections.abc import Callable

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run
from rwkv_lab.sweeps.stopping.curves import Peers, read_curve
from rwkv_lab.training.context import RunContext
from rwkv_lab.util.console import warn


class EarlyStop:
    """Asks the stop rule of a running job at its evaluations, and records its forecasts in run.json."""

    def __init__(self, context: RunContext, lr: Callable[[int], float]) -> None:
        assert context.config.stop is not None
        self._rule, self._context, self._lr = context.config.stop, context, lr
        self._peers = Peers(Run(context.path.resolve()))
        self._warned = False

    def reason_to_stop(self) -> str:
        """Return the rule's sentence if it gives the job up after the last row of metrics.csv, else an empty string.

        A rule that fails lets the job go on.
        """
        own = read_curve(Run(self._context.path))
        if own is None or own.done < self._rule.after or own.done >= 1:
            return ""
        judged = dataclasses.replace(own, forecast=None, lr=np.array([self._lr(step) for step in range(own.total)]))
        try:
            verdict = self._rule.verdict(judged, self._peers.curves())
        except (UserError, ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            if not self._warned:
                warn(f"stop={self._rule.name} cannot judge this job yet: {error}")
            self._warned = True
            return ""
        if verdict.forecast:
            self._context.claim.record(forecast=verdict.forecast)
        return verdict.reason
