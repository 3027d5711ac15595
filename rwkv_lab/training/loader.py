"""The batches of a run in order, made ahead on a thread of their own where a device would wait for them."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

AHEAD = 4  # batches made before they are asked for

Batch = TypeVar("Batch")
Place = tuple[int, int]  # update, micro-batch


class Loader(Generic[Batch]):
    """A context in which ``take`` returns ``make(update, micro)`` for each of ``places``, one after the other.

    ahead   batches that a thread makes meanwhile; 0 makes each when it is taken

    What ``make`` raises, ``take`` raises.
    """

    def __init__(self, make: Callable[[int, int], Batch], places: Iterable[Place], ahead: int):
        self._make, self._places, self._ahead = make, iter(places), ahead
        self._pool = ThreadPoolExecutor(1, "loader") if ahead else None
        self._waiting: deque[Future[Batch]] = deque()

    def take(self) -> Batch:
        """Return the next batch."""
        if self._pool is None:
            return self._make(*next(self._places))
        while len(self._waiting) <= self._ahead and (place := next(self._places, None)) is not None:
            self._waiting.append(self._pool.submit(self._make, *place))
        return self._waiting.popleft().result()

    def __enter__(self) -> "Loader[Batch]":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
