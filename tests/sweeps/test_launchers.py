"""The same sweep under every launcher: with one thread a job, the same numbers to the last bit."""

import pytest

from rwkv_lab.runs import find, read_metrics
from tests.lab import TINY, Lab

pytestmark = pytest.mark.slow

SWEEP = (
    *("-m", *TINY, "trainer.steps=4", "trainer.batch_size=4", "trainer.log_every=1"),
    *("trainer.eval_tokens=256", "trainer.sample_length=0"),
)

# submitit's debug executor runs each job where Slurm would have been asked to; its parameters are checked as Slurm's.
SLURM_WITHOUT_SLURM = """
import sys, submitit
auto = submitit.AutoExecutor
submitit.AutoExecutor = lambda cluster, **settings: auto(cluster="debug", **settings)
from rwkv_lab.cli import train
sys.exit(train.main(sys.argv[1:]))
"""


def numbers(lab: Lab, study: str) -> dict[str, tuple]:
    """Weights and measured columns of every run of a study."""
    return {
        run.name: (
            (run.path / "model.safetensors").read_bytes(),
            read_metrics(run.path / "metrics.csv")["train_loss"].tolist(),
            run.manifest["result"]["val_loss"],
        )
        for run in find(lab.runs / study)
    }


@pytest.fixture(scope="module")
def one_after_another(lab: Lab) -> dict[str, tuple]:
    lab.run(*SWEEP, "seed=1,2", "study=basic")
    found = numbers(lab, "basic")
    assert len(found) == 2
    return found


def test_side_by_side_gives_the_same_numbers(lab: Lab, one_after_another: dict[str, tuple]):
    done = lab.run(*SWEEP, "seed=1,2", "study=cores", "hydra/launcher=cores")
    assert numbers(lab, "cores") == one_after_another
    assert done.stdout.count("complete: ") == 2
    assert "step 4/4" not in done.stdout


def test_background_gives_the_same_numbers(lab: Lab, one_after_another: dict[str, tuple], tmp_path):
    # Typed in another folder: the workers must find everything all the same.
    script = str(lab.root / "run.py")
    lab.python(script, *SWEEP, "seed=1", "study=background", "hydra/launcher=background", cwd=tmp_path)
    assert numbers(lab, "background").items() <= one_after_another.items()


def test_slurm_gives_the_same_numbers(lab: Lab, one_after_another: dict[str, tuple]):
    lab.python("-c", SLURM_WITHOUT_SLURM, *SWEEP, "seed=1", "study=slurm", "hydra/launcher=slurm")
    assert numbers(lab, "slurm").items() <= one_after_another.items()


def test_ray_gives_the_same_numbers(lab: Lab, one_after_another: dict[str, tuple]):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    lab.run(*SWEEP, "seed=1,2", "study=ray", "hydra/launcher=ray_jobs", timeout=300)
    assert numbers(lab, "ray") == one_after_another
