"""Runs in the test's own process: start-up costs nothing, and a fault can be put anywhere in the code."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from rwkv_lab.config import check, hydra
from rwkv_lab.config.run_hash import named_files, run_name
from rwkv_lab.runs import Run, load
from rwkv_lab.training import run, trainer
from rwkv_lab.util.paths import REPOSITORY

TIMING = ("seconds", "tokens_per_second", "mfu")
STEPS = 12

# Rows at every step, a checkpoint at every second, an evaluation at every third, on a text of one's own.
SETTINGS = (
    "model.n_layer=1",
    "model.n_embd=16",
    "model.ctx_len=16",
    "tracker=none",
    "ops=reference",
    f"trainer.steps={STEPS}",
    "trainer.threads=1",
    "trainer.batch_size=2",
    "trainer.log_every=1",
    "trainer.eval_every=3",
    "trainer.eval_tokens=512",
    "trainer.checkpoint_every=2",
    "trainer.sample_length=8",
)


class Killed(BaseException):
    """Ends a run as SIGKILL would: nothing in the run's code catches it."""


@dataclass
class Here:
    """Runs jobs in this process, into a runs/ of their own."""

    runs: Path
    text: Path
    monkeypatch: pytest.MonkeyPatch
    composed: Any = None

    def run(self, *overrides: str, study: str = "faulty") -> int:
        """The exit code run.py would have; a Mistake is raised."""
        chosen = any(word.startswith("data=") for word in overrides)
        corpus = [] if chosen else ["data=text", f"data.path={self.text}"]
        words = [*SETTINGS, *corpus, f"study={study}", f"runs_dir={self.runs}", *overrides]
        with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
            composed = hydra_compose("config", overrides=words)
        self.composed = composed
        code, _ = run.run_here(composed, words)
        return code

    def folder(self, study: str = "faulty") -> Path:
        """Where the run of the last call lies."""
        config = check.check(self.composed)
        return self.runs / study / run_name(config, named_files(config))

    def loaded(self, study: str = "faulty") -> Run:
        return load(self.folder(study))

    def at_step(self, step: int, fault: Callable[[], Any], patch: pytest.MonkeyPatch | None = None) -> None:
        """Calls ``fault`` before update number ``step`` (from 0) of the runs to come."""
        update = trainer.update

        def faulty(training: Any, module: Any, index: int) -> Any:
            if index == step:
                fault()
            return update(training, module, index)

        (patch or self.monkeypatch).setattr(trainer, "update", faulty)

    def kill_at(self, step: int, *overrides: str) -> None:
        """Runs until update ``step``, then ends the run as SIGKILL would."""

        def fault() -> None:
            raise Killed

        with self.monkeypatch.context() as patch:
            self.at_step(step, fault, patch)
            with pytest.raises(Killed):
                self.run(*overrides)


def make_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    hydra.prepare()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} plus {i} is {2 * i}.\n" for i in range(200)))
    return Here(tmp_path / "runs", text, monkeypatch)


def numbers(run: Path) -> dict[str, Any]:
    """Everything a run computed: rows without their timing columns, weights, losses, sample."""
    return results(run) | {"sample": (run / "sample.txt").read_text()}


def results(run: Path) -> dict[str, Any]:
    """The same without the sample, which a complete run may lack."""
    loaded = load(run)
    rows = {key: values.tolist() for key, values in loaded.metrics().items() if key not in TIMING}
    result = {key: value for key, value in loaded.manifest["result"].items() if key not in TIMING}
    return {
        "rows": repr(rows),
        "result": result,
        "weights": (run / "model.safetensors").read_bytes(),
        "checkpoint": (run / "checkpoints" / f"step-{STEPS:09d}.safetensors").read_bytes(),
    }
