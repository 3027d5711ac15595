"""Steps on whole runs by run.py, into a runs/ beside the results: resuming, one process under ddp, a short study."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.report import Step
from rwkv_lab.config.registry import names
from rwkv_lab.runs import read_metrics
from rwkv_lab.util.paths import REPOSITORY

STEPS, STOP = 20, 10
TINY = ("model.n_layer=1", "model.n_embd=32", "model.ctx_len=16", "trainer.threads=1")
MEDIUM = ("model.n_layer=4", "model.n_embd=256", "model.ctx_len=256")
EXACT = 0.0
CLOSE = 5e-3


def settings(step: Step) -> tuple[str, ...]:
    rows = ("trainer.log_every=1", "trainer.eval_every=0", "trainer.checkpoint_every=5", "trainer.sample_length=4")
    size = (*TINY, "trainer.precision=fp32") if step.rehearse else (*MEDIUM, "trainer.precision=bf16")
    amounts = (f"trainer.steps={STEPS}", "trainer.final_tokens=4096", "trainer.eval_tokens=4096", "tracker=none")
    return (*size, *rows, *amounts, f"trainer.device={step.device}")


def start(*words: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *words], cwd=REPOSITORY)


def run(root: Path, *words: str) -> int:
    print("run.py", *words, flush=True)
    return start("run.py", *words, f"runs_dir={root}").wait()


def only(root: Path, study: str) -> Path:
    (path,) = (root / study).glob("*/run.json")
    return path.parent


def difference(one: Path, other: Path) -> float:
    """The largest relative difference of two runs' training losses; infinite if their rows differ in number."""
    a, b = (read_metrics(path / "metrics.csv")["train_loss"] for path in (one, other))
    if len(a) != len(b) or not len(a):
        return float("inf")
    return float(max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True)))


def fresh(root: Path, *studies: str) -> None:
    for study in studies:
        shutil.rmtree(root / study, ignore_errors=True)


def resume(step: Step) -> None:
    """The same run twice, and once killed after ten updates and resumed; with deterministic=true bit by bit."""
    root = step.folder / "runs"
    words = (*settings(step), "trainer.deterministic=true")
    fresh(root, "whole", "again", "killed")
    for study in ("whole", "again"):
        step.check(f"{study} ends", run(root, *words, f"study={study}") == 0)
    twice = difference(only(root, "whole"), only(root, "again"))
    step.check("the same run twice", twice == EXACT, off=twice)
    process = start("run.py", *words, "study=killed", f"runs_dir={root}")
    pattern = f"*/checkpoints/step-{STOP:09d}.json"
    while process.poll() is None and not list((root / "killed").glob(pattern)):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    status = json.loads((only(root, "killed") / "run.json").read_text())["status"]
    step.check("killed before its end", status == "running", status=status)
    step.check("the resumed run ends", run(root, *words, "study=killed") == 0)
    resumed = difference(only(root, "whole"), only(root, "killed"))
    step.check("resumed against whole", resumed == EXACT, off=resumed)


def ddp(step: Step) -> None:
    """One process through the whole path of several, NCCL included, against a run without."""
    root = step.folder / "runs"
    fresh(root, "alone", "ddp")
    device = [word for word in settings(step) if not word.startswith("trainer.device=")]
    words = (*device, f"trainer.device={step.device}")
    step.check("alone ends", run(root, *words, "study=alone") == 0)
    step.check("ddp ends", run(root, *words, "trainer=ddp", "trainer.processes=1", "study=ddp") == 0)
    off = difference(only(root, "alone"), only(root, "ddp"))
    step.check("ddp against alone", off < CLOSE, off=off)


def shares(step: Step) -> None:
    """One process with the model in shares, and with activations computed again, against a run without; fp16, which
    skips its first updates, ends."""
    root = step.folder / "runs"
    words = settings(step)
    ways = {
        "fsdp": ("trainer=fsdp", "trainer.processes=1"),
        "fp16": ("trainer.precision=fp16",),
        "again": ("trainer.activation_checkpointing=true",),
    }
    fresh(root, "plain", *ways)
    step.check("plain ends", run(root, *words, "study=plain") == 0)
    for study, changed in ways.items():
        step.check(f"{study} ends", run(root, *words, *changed, f"study={study}") == 0)
        off = difference(only(root, "plain"), only(root, study))
        step.check(f"{study} against plain", off < CLOSE or study == "fp16", off=off)


def study(step: Step) -> None:
    """A short run of every model, and the page that compares them."""
    root = step.folder / "runs"
    fresh(root, "short")
    text = ("data=text", f"data.path={step.text}") if step.text else ("data=builtin",)
    models = ("rwkv_v4",) if step.rehearse else tuple(names("model"))
    size = TINY if step.rehearse else ("model.n_layer=4", "model.n_embd=256", "model.ctx_len=256")
    amount = "trainer.steps=4" if step.rehearse else "trainer.steps=150"
    batch = () if step.rehearse else ("trainer.batch_size=32",)
    words = (
        *size,
        *text,
        *batch,
        amount,
        "trainer.final_tokens=65536",
        "tracker=none",
        f"trainer.device={step.device}",
    )
    for model in models:
        started = time.monotonic()
        code = run(root, f"model={model}", *words, "study=short")
        found = {}
        for path in (root / "short").glob(f"{model}-*/run.json"):
            result = json.loads(path.read_text()).get("result") or {}
            found = {key: result.get(key) for key in ("val_bpb", "tokens_per_second")}
        step.check(model, code == 0, seconds=time.monotonic() - started, **found)
    code = start("-m", "analysis", "compare", str(root / "short"), "--out", str(step.folder / "compare")).wait()
    pages = [path.name for path in (step.folder / "compare").glob("*.html")]
    step.check("page of compare", code == 0 and bool(pages), pages=pages)
