"""The vote on stopping between gloo processes: counted one update later, and a dead or hung rank ends the others."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rwkv_lab.training.distributed import vote
from rwkv_lab.training.distributed.torchrun import LOST_TOUCH
from rwkv_lab.training.distributed.vote import Vote
from rwkv_lab.training.distributed.world import LostTouch, World, lost_touch

RANK = """
import ctypes, os, sys, time
import torch.distributed as dist
from rwkv_lab.training.distributed import vote
from rwkv_lab.training.distributed.world import World

rank, file, what, grace, patience = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), float(sys.argv[5])
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
world = World(rank, 2, dist.new_group(backend="gloo"))
vote.GRACE_SECONDS = grace
with vote.Vote(world, patience) as votes:
    if what == "ask":
        print([votes.cast(rank == 1 and i == 2) for i in range(5)], flush=True)
        sys.exit(0)
    votes.cast(False)
    votes.cast(False)
    print("ready", flush=True)
    if rank == 1:
        time.sleep(600)
    votes.cast(False)
    if what == "stuck":
        # As in a GPU's collective: no signal is heard and no Python runs.
        ctypes.PyDLL(None).usleep(0)
        ctypes.CDLL(None).sleep(600)
    try:
        votes.cast(False)
    except Exception as error:
        print(type(error).__name__, flush=True)
        os._exit(7)
"""


def start(tmp_path, what: str, grace: float = 60.0, patience: float = 60.0) -> list[subprocess.Popen]:
    arguments = [str(tmp_path / "meeting"), what, str(grace), str(patience)]
    return [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), *arguments], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]


def end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


def test_alone_it_is_the_flag():
    with Vote(World(), 1.0) as votes:
        assert [votes.cast(flag) for flag in (False, True)] == [False, True]


@pytest.mark.slow
def test_all_ranks_know_one_vote_later(tmp_path):
    processes = start(tmp_path, "ask")
    answers = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert answers == ["[False, False, False, True, False]"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "grace", "patience", "number"),
    [
        ("stuck", 0.1, 60.0, signal.SIGKILL),  # a dead rank, inside a GPU's collective
        ("waiting", 60.0, 60.0, signal.SIGKILL),  # a dead rank, seen by the next vote
        ("stuck", 0.1, 1.0, signal.SIGSTOP),  # a rank that hangs
    ],
)
def test_a_lost_rank_ends_the_other(tmp_path, what, grace, patience, number):
    processes = start(tmp_path, what, grace, patience)
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        os.kill(processes[1].pid, number)
        said, _ = processes[0].communicate(timeout=30)
        assert (processes[0].returncode, said) == ((LOST_TOUCH, "") if what == "stuck" else (7, "LostTouch\n"))
    finally:
        end(processes)


def test_what_counts_as_lost():
    assert lost_touch(LostTouch("gone")) and not lost_touch(RuntimeError("of another kind"))
    assert vote.GRACE_SECONDS < 15
