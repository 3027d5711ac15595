"""Starting the ranks of one run on this machine, by torch elastic, on which torchrun is built."""

import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkv_lab.config import derived
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import Config, TrainerConfig
from rwkv_lab.runs import Run
from rwkv_lab.runs.provenance import usable_cores
from rwkv_lab.training.distributed import torchrun
from rwkv_lab.util.paths import train_command
from rwkv_lab.util.signals import STOPPED, StopSignals, end_process
from rwkv_lab.util.subprocesses import killed_by


def run(config: Config, path: Path) -> tuple[int, float]:
    """Run this command again in ``trainer.processes`` ranks; return exit code and final val_loss, or infinity."""
    # torch is imported here, so that everything before it answers at once.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    processes = count(config.trainer)
    derived.check_shares(config.trainer, processes)
    _silence()
    os.environ["OMP_NUM_THREADS"] = str(threads(processes, os.environ))
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=torchrun.run_id(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        max_restarts=0,
        # Requests to stop are ours: elastic hands them on as they come, and SIGINT finds a rank's Python starting up.
        signals_to_handle="SIGQUIT",
        shutdown_timeout=round(config.trainer.timeout),
    )
    try:
        with StopSignals(again=end_process):
            interpreter, *program = train_command()
            elastic_launch(settings, interpreter)("-u", *program, *sys.argv[1:])
    except ChildFailedError as failed:
        return _end(failed.failures, processes), float("inf")
    except (KeyboardInterrupt, SignalException):
        # Elastic has passed it on and waited; the ranks have said how to go on.
        return STOPPED, float("inf")
    return 0, Run(path).manifest["result"]["val_loss"]


def count(trainer: TrainerConfig) -> int:
    """Return how many ranks to start: ``trainer.processes``, else one per GPU, else one per CPU core."""
    import torch

    gpus = torch.cuda.device_count() if trainer.device in ("auto", "cuda") else 0
    if trainer.processes is not None and gpus and trainer.processes > gpus:
        raise UserError(
            f"trainer.processes={trainer.processes} is more than the {gpus} GPUs here: choose at most {gpus}"
        )
    return trainer.processes or gpus or usable_cores()


def threads(processes: int, environment: Mapping[str, str]) -> int:
    """Return a rank's share of the run's threads: of OMP_NUM_THREADS, or else of the cores."""
    given = environment.get("OMP_NUM_THREADS", "")
    return max(1, (int(given) if given.isdecimal() else usable_cores()) // processes)


def _silence() -> None:
    """Mute elastic, which would log again what its ranks and ``_end`` print."""
    logger = logging.getLogger("torch.distributed.elastic")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


def _end(failures: Mapping[int, Any], processes: int) -> int:
    """Return the exit code of a run whose ranks failed; print one sentence if none of them could."""
    in_order = sorted(failures.items(), key=lambda item: item[1].timestamp)
    # Elastic itself ends the others, by SIGTERM at once and by SIGKILL much later.
    at_once = in_order[0][1].timestamp + 1
    killed = [item for item in in_order if item[1].exitcode < 0 and item[1].exitcode != -signal.SIGTERM]
    exit_codes = [
        failure.exitcode for _, failure in in_order if failure.exitcode > 0 and failure.exitcode != torchrun.LOST_TOUCH
    ]
    if killed and killed[0][1].timestamp <= at_once:
        rank, failure = killed[0]
        reason = f"process {rank + 1} of {processes} was {killed_by(-failure.exitcode)}"
    elif exit_codes:
        return exit_codes[0]
    else:
        reason = f"the {processes} processes of the run lost touch with each other"
    print(f"failed: {reason}; the same command again goes on from the last checkpoint", file=sys.stderr)
    return 1
