"""The ranks' vote on stopping, which also notices a rank that has died or hangs.

Votes travel through the CPU's group, beside the gradients: nobody waits for the device. A vote is counted while the
next update runs. A rank that waits for a dead one inside a GPU's collective hears nothing else, no signal either, so
the thread that counts ends it.
"""

import os
import queue
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rwkv_lab.training.distributed.torchrun import LOST_TOUCH
from rwkv_lab.training.distributed.world import LostTouch, World

GRACE_SECONDS = 10.0


@dataclass
class _Ballot:
    work: Any
    raised: torch.Tensor
    counted: threading.Event = field(default_factory=threading.Event)
    error: RuntimeError | None = None


class Vote:
    """A context in which ``cast(flag)`` is called once an update by every rank of ``world``.

    Another rank that has not cast its vote ``patience`` seconds later counts as lost; then this process ends with
    exit code ``LOST_TOUCH``, unless ``cast`` could raise ``LostTouch`` within ``GRACE_SECONDS``.
    """

    def __init__(self, world: World, patience: float):
        self._world = world
        self._patience = timedelta(seconds=patience)
        self._ballots: queue.Queue[_Ballot | None] = queue.Queue()
        self._last: _Ballot | None = None
        self._left = threading.Event()

    def cast(self, flag: bool) -> bool:
        """Return whether any rank raised its flag at the vote before this one; alone: ``flag``."""
        if self._world.size == 1:
            return flag
        before = self._last
        raised = torch.tensor(int(flag))
        work = dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self._world.side, async_op=True)
        self._last = _Ballot(work, raised)
        self._ballots.put(self._last)
        return before is not None and self._result(before)

    def _result(self, ballot: _Ballot) -> bool:
        ballot.counted.wait()
        if ballot.error is not None:
            raise LostTouch(str(ballot.error))
        return bool(ballot.raised.item())

    def _count(self) -> None:
        for ballot in iter(self._ballots.get, None):
            try:
                ballot.work.wait(self._patience)
            except RuntimeError as error:
                ballot.error = error
            ballot.counted.set()
            if ballot.error is not None:
                if not self._left.wait(GRACE_SECONDS):
                    os._exit(LOST_TOUCH)
                return

    def __enter__(self) -> "Vote":
        if self._world.size > 1:
            threading.Thread(target=self._count, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None and self._last is not None:
            self._result(self._last)
        self._left.set()
        self._ballots.put(None)
