"""Trials of power cuts and damaged files: no traceback, and no number that differs without a word."""

import contextlib
import io
import json
import random
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rwkv_lab import models
from rwkv_lab.cli import evaluate, generate
from rwkv_lab.cli import runs as runs_command
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.runs import load
from tests.damage import DAMAGES, damage
from tests.in_process import Here, make_here, results
from tests.power import Disk, spread

KILLED_AT = 9
CODES = (0, 1, 2)


@dataclass(frozen=True)
class Answer:
    """What one command made of the files: its exit code, its numbers, what it wrote to standard error."""

    code: int
    value: object
    said: str

    def fault(self, expected: object) -> str | None:
        """Return what is wrong with it; a value that differs is right if the command failed or warned."""
        if "Traceback" in self.said:
            return f"traceback: {self.said.strip().splitlines()[-1]}"
        if self.code not in CODES:
            return f"exit code {self.code}"
        if self.code == 0 and self.value != expected and "warning:" not in self.said:
            return "a number differs without a word"
        return None


def ask(command: Callable[[], int | None], value: Callable[[str], object] = str.strip) -> Answer:
    """Run a command in this process; ``value`` takes its numbers from standard output."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main_guard(command)
            found = value(out.getvalue()) if code == 0 else None
        except UserError as refusal:
            code, found = 2, None
            print(refusal, file=err)
        except Exception:
            code, found = 1, None
            traceback.print_exc()
    return Answer(code, found, err.getvalue())


def make_disk(folder: Path, patch: pytest.MonkeyPatch) -> Here:
    """Return a place for runs with disk/runs and disk/cache below ``folder``, and the text outside the disk."""
    here = make_here(folder / "disk", patch)
    here.text = here.text.rename(folder / "text.txt")
    load_model = models.load
    # The kernels of the reference, so that none is built into the cache of the trial.
    patch.setattr(models, "load", lambda path, backend="reference": load_model(path, backend))
    return here


def fresh(disk: Path, content: Path | None = None) -> None:
    """Put ``content`` in place of the disk's; nothing for None."""
    shutil.rmtree(disk, ignore_errors=True)
    if content is None:
        disk.mkdir()
    else:
        shutil.copytree(content, disk)


def trained(here: Here) -> Answer:
    """Train the run to its end, from whatever is there."""
    return ask(here.run, lambda _: results(here.folder()))


def power_cuts(folder: Path, cuts: int, seed: int) -> list[str]:
    """Return what went wrong with runs that lost their power at ``cuts`` moments and were started again."""
    draw, faults = random.Random(seed), []
    (folder / "disk").mkdir(parents=True)
    (folder / "cuts").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        here = make_disk(folder, patch)
        expected, total = recorded(folder, here, lambda disk: None)

        def plan(disk: Disk) -> None:
            for moment in moments:
                disk.at(moment, lambda moment=moment: disk.cut(folder / "cuts" / f"{moment}", draw))

        moments = spread(total, cuts, draw)
        fresh(folder / "disk")
        recorded(folder, here, plan)
        for moment in moments:
            fresh(folder / "disk", folder / "cuts" / f"{moment}")
            answer = trained(here)
            fault = answer.fault(expected) or (None if answer.code == 0 else answer.said.strip())
            if fault:
                faults.append(f"power cut at moment {moment} of {total}: {fault}")
    return faults


def recorded(folder: Path, here: Here, plan: Callable[[Disk], None]) -> tuple[Any, int]:
    """Train on a disk whose flushes are recorded; return the numbers, and how many moments there were."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(folder / "disk", patch)
        plan(disk)
        answer = trained(here)
        disk.close()
    assert answer.code == 0, answer.said
    return answer.value, disk.moments


def damaged_files(folder: Path, trials: int, seed: int) -> list[str]:
    """Return what went wrong with a finished run, an interrupted one and their caches, one file damaged each time."""
    draw, faults = random.Random(seed), []
    disk, pristine = folder / "disk", folder / "pristine"
    disk.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        here = make_disk(folder, patch)
        assert here.run(study="finished") == 0
        here.kill_at(KILLED_AT)
        shutil.copytree(disk, pristine)
        expected = {name: answers(here, name) for name in ("finished", "interrupted", "cache")}
        files = sorted(file for file in pristine.rglob("*") if file.is_file() and file.stat().st_size)
        for trial in range(trials):
            fresh(disk, pristine)
            file = disk / draw.choice(files).relative_to(pristine)
            how = draw.choice(list(DAMAGES))
            if not damage(file, how, draw):
                continue
            where = kind_of(file.relative_to(disk))
            for command, answer in answers(here, where).items():
                if fault := answer.fault(expected[where][command].value):
                    faults.append(f"trial {trial}: {file.relative_to(disk)} {how}, {command}: {fault}")
    return faults


def kind_of(file: Path) -> str:
    """Return which of the three a file belongs to."""
    return "cache" if file.parts[0] == "cache" else "finished" if file.parts[1] == "finished" else "interrupted"


def answers(here: Here, where: str) -> dict[str, Answer]:
    """Return what the commands that read the finished or the interrupted run, or the cache, make of it."""
    if where == "interrupted":
        return {"resume": trained(here)}
    if where == "cache":
        shutil.rmtree(here.runs, ignore_errors=True)
        return {"train": trained(here)}
    (run,) = (path for path in (here.runs / "finished").iterdir() if path.is_dir())
    place = ["--runs-dir", str(here.runs)]
    shutil.rmtree(here.runs / "warm", ignore_errors=True)
    return {
        "same command": ask(lambda: here.run(study="finished"), result_lines),
        "list": ask(lambda: runs_command.main(["list", "finished", "--json", *place]), without_age),
        "show": ask(lambda: runs_command.main(["show", str(run), *place])),
        "metrics": ask(lambda: print({name: column.tolist() for name, column in load(run).metrics().items()})),
        "evaluate": ask(lambda: evaluate.main([str(run)])),
        "init_from": ask(lambda: here.run(f"model.init_from={run}", study="warm"), result_lines),
        "generate": ask(lambda: generate.main([str(run), "1 plus", "--length", "8"])),
    }


def result_lines(text: str) -> list[str]:
    """Return the losses that a run prints at its end, without its speed."""
    return [line.partition("  ")[0] for line in text.splitlines() if line.startswith(("val_loss", "train_loss"))]


def without_age(text: str) -> list[Any]:
    """Return the rows of a list; UserError if one is listed as unreadable."""
    rows = [{key: value for key, value in row.items() if key not in ("age", "name")} for row in json.loads(text)]
    for row in rows:
        if row["status"] == "unreadable":
            raise UserError(row["reason"])
    return rows
