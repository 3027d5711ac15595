"""python -m benchmarks.gpu: every step in a process of its own, in order of worth, with a time limit.

What a step finds is on disk at once, in OUT/gpu.json and OUT/gpu.md; a step that fails does not stop the next. At the
end: what failed, and the command that repeats it.
"""

import argparse
import importlib
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu import report
from rwkv_lab.config.errors import UserError, main_guard

# name: (module, seconds at most)
STEPS = {
    "versions": ("system", 30),
    "build": ("kernels", 90),
    "scan": ("kernels", 60),
    "tests": ("system", 120),
    "models": ("models", 75),
    "resume": ("runs", 75),
    "ddp": ("runs", 45),
    "graphs": ("models", 60),
    "shares": ("runs", 75),
    "training": ("speed", 90),
    "large": ("speed", 60),
    "compiled": ("speed", 90),
    "bandwidth": ("kernels", 60),
    "decode": ("speed", 45),
    "study": ("runs", 90),
    "sanitizer": ("system", 60),
}
SECONDS = 470.0  # of the eight minutes
REHEARSAL_FACTOR = 5  # a CPU that others use too
LEAST_SECONDS = 5.0
ENDING_SECONDS = 5.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Proves the GPU path on one card.")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of the results (build/gpu)")
    parser.add_argument("--only", help=f"steps, comma-separated, of {', '.join(STEPS)} (default: all)")
    parser.add_argument("--text", type=Path, help="text of the short study, e.g. the first 4 MB of enwik8")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all steps together ({SECONDS:.0f})")
    parser.add_argument("--rehearse", action="store_true", help="the same on the CPU with tiny sizes")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.seconds *= REHEARSAL_FACTOR if args.rehearse else 1
    for name in [*(args.only or "").split(","), args.step or ""]:
        if name and name not in STEPS:
            raise UserError(f"--only must be among {', '.join(STEPS)} (got {name})")
    if args.text and not args.text.is_file():
        raise UserError(f"--text must be a file (got {args.text})")
    return args


def head(rehearse: bool) -> str:
    """The machine in a line."""
    import torch

    card = "CPU, a rehearsal" if rehearse else torch.cuda.get_device_name()
    return f"{card}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}"


def take(name: str, args: argparse.Namespace) -> int:
    """Takes one step in this process: 0 if all it found is good, 1 if not."""
    step = report.Step(name, args.out, args.rehearse, args.text.absolute() if args.text else None)
    module = importlib.import_module(f"benchmarks.gpu.{STEPS[name][0]}")
    getattr(module, name)(step)
    return int(any(finding.get("good") is False for finding in report.findings(args.out, name)))


def command(name: str, args: argparse.Namespace) -> list[str]:
    """The command of one step."""
    words = [sys.executable, "-m", "benchmarks.gpu", "--step", name, "--out", str(args.out)]
    words += ["--text", str(args.text)] if args.text else []
    return words + (["--rehearse"] if args.rehearse else [])


def run_step(name: str, args: argparse.Namespace, seconds: float) -> str:
    """Runs a step; "done", or how it ended instead. Its words go to OUT/NAME.log, and none of its processes stays."""
    for left in (args.out / f"{name}.jsonl", args.out / f"{name}.log"):
        left.unlink(missing_ok=True)
    with open(args.out / f"{name}.log", "w") as log:
        process = subprocess.Popen(command(name, args), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    if code is None:
        return f"did not end within {seconds:.0f} s"
    if code == 0:
        return "done"
    fails = [finding["what"] for finding in report.findings(args.out, name) if finding.get("good") is False]
    lines = (args.out / f"{name}.log").read_text(errors="replace").strip().splitlines()
    return f"failed: {', '.join(fails) or (lines or [f'exit code {code}'])[-1][:200]}"


def _end(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def main() -> int:
    args = arguments()
    import torch

    if not args.rehearse and not torch.cuda.is_available():
        raise UserError("torch sees no GPU here: run this on a machine with one, or rehearse it with --rehearse")
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.step:
        try:
            return take(args.step, args)
        except Exception:
            traceback.print_exc()
            return 1
    machine = head(args.rehearse)
    print(machine, flush=True)
    names = args.only.split(",") if args.only else list(STEPS)
    started, steps = time.monotonic(), []
    for name in names:
        left = args.seconds - (time.monotonic() - started)
        begun = time.monotonic()
        limit = min(STEPS[name][1] * (REHEARSAL_FACTOR if args.rehearse else 1), left)
        result = "left out: no time" if left < LEAST_SECONDS else run_step(name, args, limit)
        steps.append({"name": name, "seconds": time.monotonic() - begun, "result": result})
        report.write(args.out, steps, machine)
        print(f"{name:10} {steps[-1]['seconds']:5.0f} s  {result}", flush=True)
    return summary(steps, args)


def summary(steps: list[dict[str, Any]], args: argparse.Namespace) -> int:
    """Print where the results are and what failed, with the command to repeat it."""
    print(f"\nresults: {args.out / 'gpu.md'}, {args.out / 'gpu.json'}")
    bad = [step for step in steps if step["result"] != "done"]
    for step in bad:
        print(f"{step['name']}: {step['result']}\n    again: {' '.join(command(step['name'], args)[1:])}")
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main_guard(main))
