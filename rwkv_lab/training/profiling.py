"""``trainer.profile=N``: a trace of N updates and a table of the ten costliest operators, in RUN/profile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import profiler

from rwkv_lab.util.console import say, warn
from rwkv_lab.util.io import write_atomic

WAIT, WARM_UP = 4, 1  # updates before those that are traced: caches fill, memory is first asked for
ROWS = 10
NAME_WIDTH = 55


@contextmanager
def traced(folder: Path, updates: int) -> Iterator[Callable[[], None]]:
    """Context that traces ``updates`` updates; the function it gives is called after each of the run's. 0: none.

    ``trace.json`` opens in Perfetto or chrome://tracing; ``operators.txt`` is the table.
    """
    if not updates:
        yield lambda: None
        return
    activities = [profiler.ProfilerActivity.CPU]
    activities += [profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    wanted = profiler.schedule(wait=WAIT, warmup=WARM_UP, active=updates, repeat=1)
    found: list[Path] = []

    def ready(profile: profiler.profile) -> None:
        target = folder / "profile"
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=NAME_WIDTH)
        try:
            target.mkdir(exist_ok=True)
            profile.export_chrome_trace(str(target / "trace.json"))
            write_atomic(target / "operators.txt", table.encode())
        except OSError as error:
            warn(f"the profile could not be written: {error}")
        found.append(target)

    with profiler.profile(activities=activities, schedule=wanted, on_trace_ready=ready, record_shapes=True) as profile:
        yield profile.step
    if found:
        say(f"profile of {updates} updates: {found[0] / 'operators.txt'} and trace.json")
    else:
        warn(f"no profile: it needs {WAIT + WARM_UP + updates} updates in one session")
