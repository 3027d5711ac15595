"""Starts the processes of one run on this machine, through torch elastic, which torchrun is made of."""

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
from rwkv_lab.sweeps.subprocesses import killed_by
from rwkv_lab.training.distributed import torchrun
from rwkv_lab.training.signals import STOPPED, one_request

LOST_TOUCH = 3  # how a rank ends whose counterpart is gone, so that one sentence can be said for all of them
SAVING_SECONDS = 600  # for ranks that have been told to stop


def run(config: Config, path: Path) -> tuple[int, float]:
    """Runs this command again in ``trainer.processes`` ranks; (exit code, final val_loss or infinity) of the run."""
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
        shutdown_timeout=SAVING_SECONDS,
    )
    try:
        with one_request():
            elastic_launch(settings, sys.executable)("-u", *sys.argv)
    except ChildFailedError as failed:
        return _end(failed.failures, processes), float("inf")
    except (KeyboardInterrupt, SignalException):
        # Elastic has passed it on and waited; the ranks have said how to go on.
        return STOPPED, float("inf")
    return 0, Run(path).manifest["result"]["val_loss"]


def count(trainer: TrainerConfig) -> int:
    """How many ranks to start: as many as the configuration says, else one a GPU, else one a CPU core."""
    import torch

    gpus = torch.cuda.device_count() if trainer.device in ("auto", "cuda") else 0
    if trainer.processes is not None and gpus and trainer.processes > gpus:
        raise UserError(
            f"trainer.processes={trainer.processes} is more than the {gpus} GPUs here: choose at most {gpus}"
        )
    return trainer.processes or gpus or usable_cores()


def threads(processes: int, environment: Mapping[str, str]) -> int:
    """A rank's share of the threads OMP_NUM_THREADS gives the run, or else of the cores."""
    given = environment.get("OMP_NUM_THREADS", "")
    return max(1, (int(given) if given.isdigit() else usable_cores()) // processes)


def _silence() -> None:
    """Elastic logs what its ranks have said themselves or ``_end`` says."""
    logger = logging.getLogger("torch.distributed.elastic")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


def _end(failures: Mapping[int, Any], processes: int) -> int:
    """The exit code where ranks failed; one sentence where none of them could say one."""
    in_order = sorted(failures.items(), key=lambda item: item[1].timestamp)
    # Elastic itself ends the others, by SIGTERM at once and by SIGKILL much later.
    at_once = in_order[0][1].timestamp + 1
    killed = [item for item in in_order if item[1].exitcode < 0 and item[1].exitcode != -signal.SIGTERM]
    said = [failure.exitcode for _, failure in in_order if failure.exitcode > 0 and failure.exitcode != LOST_TOUCH]
    if killed and killed[0][1].timestamp <= at_once:
        rank, failure = killed[0]
        reason = f"process {rank + 1} of {processes} was {killed_by(-failure.exitcode)}"
    elif said:
        return said[0]
    else:
        reason = f"the {processes} processes of the run lost touch with each other"
    print(f"failed: {reason}; the same command again goes on from the last checkpoint", file=sys.stderr)
    return 1
