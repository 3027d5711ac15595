"""Two processes on one run: the losses of one process, resuming, one writer, and what does not fit together."""

import json

import numpy as np
import pytest
import torch

from rwkv_lab import models
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.registry import names
from rwkv_lab.runs import read_metrics
from rwkv_lab.runs.manifest import write_manifest
from rwkv_lab.training import device
from rwkv_lab.training.distributed import parallel
from rwkv_lab.training.distributed.world import World
from tests.lab import TINY, Lab

SHORT = (
    *TINY,
    *("trainer.steps=6", "trainer.batch_size=8", "trainer.accumulate=2", "trainer.log_every=1", "trainer.eval_every=3"),
    *("trainer.checkpoint_every=3", "trainer.eval_tokens=256", "trainer.sample_length=0"),
)
TWO = ("trainer=ddp", "trainer.processes=2")
# Sums over half the batch each are rounded differently; nothing else differs.
TOLERANCE = 1e-5


class Told(World):
    """A rank without the others: it is told ``found``, or, as the first rank, what it found itself."""

    def __init__(self, rank: int, size: int, found=None):
        super().__init__(rank, size)
        object.__setattr__(self, "found", found)

    def broadcast(self, value):
        return self.found or value


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume(lab: Lab):
    lab.run(*SHORT, "study=one_process")
    # As a job of a sweep, which starts its processes itself; torchrun then goes on with it.
    lab.run("-m", *SHORT, *TWO, "study=two_processes")
    one, two = lab.only_run("one_process"), lab.only_run("two_processes")
    expected, uninterrupted = read_metrics(one / "metrics.csv"), read_metrics(two / "metrics.csv")
    for column in ("step", "tokens", "lr", "train_loss", "grad_norm", "val_loss"):
        np.testing.assert_allclose(uninterrupted[column], expected[column], rtol=TOLERANCE, err_msg=column)
    weights = (two / "model.safetensors").read_bytes()

    manifest = json.loads((two / "run.json").read_text())
    assert manifest["world_size"] == 2
    for newest in (two / "checkpoints").glob("step-000000006.*"):
        newest.unlink()
    write_manifest(two, manifest | {"status": "running"})
    (two / "model.safetensors").unlink()
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "run.py")
    done = lab.python(*torchrun, *SHORT, *TWO, "study=two_processes")
    assert done.stdout.count("resuming from step 3") == 1
    resumed = read_metrics(two / "metrics.csv")
    for column in ("step", "train_loss", "grad_norm", "val_loss"):
        np.testing.assert_array_equal(resumed[column], uninterrupted[column], err_msg=column)
    assert (two / "model.safetensors").read_bytes() == weights
    again = lab.run(*SHORT, *TWO, "study=two_processes")
    assert "already complete" in again.stdout
    assert "device cpu" not in again.stdout


@pytest.mark.slow
def test_two_processes_train_the_parent_of_their_branch_first(lab: Lab):
    branch = (*SHORT, *TWO, "schedule=linear", "branch.step=3", "study=branch")
    done = lab.run(*branch)
    assert done.stdout.count("the parent of this branch") == 1
    manifests = [json.loads(path.read_text()) for path in (lab.runs / "branch").glob("*/run.json")]
    assert sorted((each["status"], each["steps"], each["world_size"]) for each in manifests) == [
        ("complete", 3, 2),
        ("complete", 6, 2),
    ]
    assert [each["origin"]["step"] for each in manifests if "origin" in each] == [3]
    # Another branch of the plateau finds it trained.
    again = lab.run(*branch, "schedule.lr_final=0")
    assert "the parent of this branch" not in again.stdout


def test_another_number_of_processes_is_refused(tmp_path):
    write_manifest(tmp_path, {"format": 1, "status": "running", "world_size": 2})
    with pytest.raises(
        UserError, match=r"started by 2 processes and would go on with 3.*torchrun --nproc-per-node 2 run.py"
    ):
        parallel._acquire_together(tmp_path, False, False, Told(0, 3))
    held = parallel._acquire_together(tmp_path, False, False, Told(0, 2))
    assert held.state == "resume"
    held.release()


def test_only_the_first_rank_takes_the_lock(tmp_path):
    first = parallel._acquire_together(tmp_path, False, False, Told(0, 2))
    other = parallel._acquire_together(tmp_path, False, False, Told(1, 2, ("fresh", {})))
    assert first.lock is not None and first.lock.is_locked
    assert other.lock is None
    first.release()


def test_plain_cuda_leaves_the_current_device_alone(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    threads = torch.get_num_threads()
    for name in ("cpu", "cuda", "cuda:1"):
        device.apply(device.Resolved(name, "fp32", "reference", threads))
    assert chosen == [torch.device("cuda:1")]


@pytest.mark.parametrize("name", names("model"))
@pytest.mark.parametrize("options", [{}, {"head_qk_dim": 8, "token_shift": "learned", "small_init_emb": True}])
def test_every_parameter_takes_part_in_the_loss(name: str, options: dict):
    # DistributedDataParallel waits for the gradient of each.
    model = models.build(name, vocab_size=11, n_layer=2, n_embd=16, ctx_len=8, **options)
    idx = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(0))
    model.loss(idx, idx).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
