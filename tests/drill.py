"""Kills small runs, cuts their power and damages their files, and counts what differs from an undisturbed run.

``make drill``, or ``python -m tests.drill --kills 20 --cuts 100 --trials 200 --seed 1``. A third of the kills falls
between two updates, a third while a checkpoint is being written, a third into start-up; ``tests/trials.py`` has the
cuts and the damage.
"""

import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.runs import load
from rwkv_lab.util.paths import REPOSITORY
from tests.lab import Lab, make_lab
from tests.trials import damaged_files, power_cuts

TIMING = ("seconds", "tokens_per_second", "mfu")
MOMENTS = ("training", "saving", "start-up")
STEPS_PER_KILL = 60
PATIENCE_SECONDS = 400.0
SETTINGS = (
    "model.n_layer=1",
    "model.n_embd=32",
    "model.ctx_len=32",
    "trainer.threads=1",
    "trainer.batch_size=4",
    "trainer.log_every=1",
    "trainer.eval_every=20",
    "trainer.eval_tokens=512",
    "trainer.checkpoint_every=7",
    "trainer.sample_length=100",
    "tracker=none",
)


@dataclass
class Kill:
    """One SIGKILL: the kind of moment, and how many rows metrics.csv had."""

    moment: str
    step: int


def text(lab: Lab) -> Path:
    """A small text, so that measuring the held-out part takes no time."""
    path = lab.root / "drill.txt"
    path.write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(1000)))
    return path


def steps_done(folder: Path) -> int:
    """Rows of metrics.csv, which has one a step."""
    file = folder / "metrics.csv"
    return max(file.read_text(errors="replace").count("\n") - 1, 0) if file.exists() else 0


def is_saving(folder: Path) -> bool:
    """Whether a checkpoint is half written at this moment."""
    checkpoints = folder / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.exists() else []
    return any(name.startswith(".tmp") or name.endswith(".partial") for name in names)


def kill_once(lab: Lab, command: list[str], folder: Path, moment: str, draw: random.Random, last: int) -> Kill | None:
    """Starts the run and kills it at such a moment; None where it ended before."""
    process = lab.start("run.py", *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + PATIENCE_SECONDS
    if moment == "start-up":
        until = time.monotonic() + draw.uniform(0.0, 3.0)
    first = steps_done(folder)
    goal = first + draw.randint(1, max(1, last - first))
    while process.poll() is None and time.monotonic() < until:
        if moment == "training" and steps_done(folder) >= goal:
            time.sleep(draw.uniform(0.0, 0.02))
            break
        # steps_done falls at the start, where rows past the checkpoint are cut off.
        if moment == "saving" and steps_done(folder) >= goal and is_saving(folder):
            break
        time.sleep(0.0005)
    if process.poll() is not None:
        return None
    process.kill()
    process.wait()
    return Kill(moment, steps_done(folder))


def differing(left: Path, right: Path) -> tuple[int, int]:
    """How many numbers of two runs differ, bit for bit, and how many there are: rows, weights, optimiser, losses."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    rows = [load(run).metrics() for run in (left, right)]
    pairs += [(rows[0][name], rows[1][name]) for name in rows[0] if name not in TIMING]
    last = sorted((left / "checkpoints").glob("*.safetensors"))[-1].relative_to(left)
    for file in (Path("model.safetensors"), last):
        tensors = [load_file(run / file) for run in (left, right)]
        pairs += [(tensors[0][name], tensors[1][name]) for name in tensors[0] | tensors[1]]
    results = [load(run).manifest["result"] for run in (left, right)]
    names = [name for name, value in results[0].items() if name not in TIMING and isinstance(value, float)]
    pairs.append(tuple(np.array([result[name] for name in names]) for result in results))  # type: ignore[arg-type]
    wrong = compared = 0
    for one, other in pairs:
        compared += max(one.size, other.size)
        if one.shape != other.shape:
            wrong += max(one.size, other.size)
        else:
            bits = [np.ascontiguousarray(each).reshape(-1, 1).view(np.uint8) for each in (one, other)]
            wrong += int((bits[0] != bits[1]).any(axis=1).sum())
    return wrong, compared


def drill(lab: Lab, kills: int, seed: int) -> tuple[list[Kill], int, int]:
    """The kills that hit, the numbers that differ afterwards, the numbers compared."""
    draw = random.Random(seed)
    steps = STEPS_PER_KILL * max(kills, 1)
    command = [*SETTINGS, "data=text", f"data.path={text(lab)}", f"trainer.steps={steps}"]
    lab.run(*command, "study=undisturbed", timeout=600)
    undisturbed = lab.only_run("undisturbed")
    folder = lab.runs / "killed" / undisturbed.name
    hits: list[Kill] = []
    for i in range(kills):
        hit = kill_once(lab, [*command, "study=killed"], folder, MOMENTS[i % 3], draw, steps * (i + 1) // (kills + 1))
        if hit is None:
            break
        hits.append(hit)
        print(f"kill {i + 1:3d}  {hit.moment:9} after {hit.step} of {steps} steps", flush=True)
    lab.run(*command, "study=killed", timeout=600)
    wrong, compared = differing(undisturbed, folder)
    if (undisturbed / "sample.txt").read_bytes() != (folder / "sample.txt").read_bytes():
        wrong += 1
    return hits, wrong, compared + 1


def main() -> int:
    parser = Arguments(prog="python -m tests.drill", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed (20)")
    parser.add_argument("--cuts", type=int, default=100, help="power cuts (100)")
    parser.add_argument("--trials", type=int, default=200, help="files damaged, one at a time (200)")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments and places (1)")
    options = parser.parse_args()
    for name in ("kills", "cuts", "trials"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name} {getattr(options, name)} is below 0")
    failed = False
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        if options.kills:
            hits, wrong, compared = drill(make_lab(REPOSITORY, Path(folder) / "checkout"), options.kills, options.seed)
            print(f"{len(hits)} kills, {compared:,} numbers compared, {wrong} differ")
            failed = bool(wrong) or len(hits) < options.kills
        for count, what, trial in (
            (options.cuts, "power cuts", power_cuts),
            (options.trials, "damaged files", damaged_files),
        ):
            faults = trial(Path(folder) / what, count, options.seed) if count else []
            print(*faults, f"{count} {what}, {len(faults)} faults", sep="\n", flush=True)
            failed |= bool(faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main_guard(main))
