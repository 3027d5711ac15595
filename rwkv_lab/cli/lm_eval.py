"""Scores on tasks of lm-evaluation-harness: rwkv-lab lm-eval MODEL --tasks TASK,... (see --help)"""

import argparse
import json
import logging
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_lab.cli.arguments import Arguments, add_model_options
from rwkv_lab.config.errors import UserError, main_guard, nearest

if TYPE_CHECKING:
    from rwkv_lab.runs import Run

KEY = (
    "evals"  # of the scores in run.json: {task: {metric: value, metric_stderr: value, samples, version, shots, limit}}
)


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="rwkv-lab lm-eval",
        description="Scores of a model on tasks of lm-evaluation-harness (extra eval). Those of a run are noted in its "
        "run.json, which analysis compare shows.",
    )
    add_model_options(parser)
    parser.add_argument(
        "--tasks", required=True, metavar="TASK,...", help="names of tasks, their YAML files, or .jsonl of one's own"
    )
    parser.add_argument("--tasks-dir", type=Path, metavar="DIR", help="folder of YAML files with further tasks")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N samples of each task")
    parser.add_argument("--shots", type=int, metavar="N", help="solved samples before each (the task's own number)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="texts read at once (16)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: list[str]) -> None:
    """The command line."""
    options = _parser().parse_args(argv)
    for key, least in (("limit", 1), ("shots", 0), ("batch_size", 1)):
        value = getattr(options, key)
        if value is not None and value < least:
            raise UserError(f"--{key.replace('_', '-')} must be at least {least} (got {value})")
    if options.tasks_dir is not None and not options.tasks_dir.is_dir():
        raise UserError(f"--tasks-dir {options.tasks_dir} is not a folder")
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError("lm-eval needs the package lm_eval: pip install 'rwkv_lab[eval]'") from None
    from rwkv_lab.inference.recurrent import placed
    from rwkv_lab.models.opening import run_of, with_tokenizer

    model, tokenizer = with_tokenizer(options.model, options.tokenizer)
    run = run_of(options.model)
    with placed(model, options.device, options.precision) as ready:
        scores = evaluated(ready, tokenizer, options)
    if run is not None:
        note(run, scores)
    if options.json:
        print(json.dumps(scores))
        return
    for task, score in scores.items():
        for metric in metrics(score):
            error = score.get(f"{metric}_stderr")
            print(f"{task}  {metric} {score[metric]:.4f}" + (f" ± {error:.4f}" if error is not None else ""), end="")
            print(f"  over {score['samples']} samples")
    if run is not None:
        print(f"noted in {run.path / 'run.json'}")


def evaluated(model: Any, tokenizer: Any, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the scores of each task. Raises UserError for a task that is unknown or cannot be loaded."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from rwkv_lab.inference.harness import Harness, local_task

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it reports each of its steps
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    own = str(options.tasks_dir) if options.tasks_dir else None
    files = {name for name in names if name.endswith((".yaml", ".jsonl")) and Path(name).is_file()}
    manager = TaskManager(include_path=own, include_defaults=False)
    if not files.issuperset(set(names) - set(manager.all_tasks)):
        manager = TaskManager(include_path=own)  # the harness's own, thousands of files
    for name in names:
        if name not in files and name not in manager.all_tasks:
            raise UserError(f"--tasks {name}: there is no such task or file{nearest(name, manager.all_tasks)}")
    try:
        found = simple_evaluate(
            Harness(model, tokenizer, options.batch_size),
            tasks=[local_task(Path(name)) if name.endswith(".jsonl") else name for name in names],
            num_fewshot=options.shots,
            limit=options.limit,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=1000,
        )
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise UserError(f"--tasks {options.tasks}: {reason}") from None
    assert found is not None
    return {task: _score(task, values, found, options.limit) for task, values in found["results"].items()}


def _score(task: str, values: dict[str, Any], found: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """Return the harness's ``metric,filter`` values as plain metrics, with what they were measured on."""
    score: dict[str, Any] = {}
    for key, value in values.items():
        metric, _, kind = key.partition(",")
        if kind and isinstance(value, (int, float)) and math.isfinite(value):
            score[metric if kind == "none" or kind.startswith("none") else f"{metric} ({kind})"] = float(value)
    samples = (found.get("n-samples") or {}).get(task) or {}
    return score | {
        "samples": samples.get("effective", values.get("sample_len")),
        "version": (found.get("versions") or {}).get(task),
        "shots": (found.get("n-shot") or {}).get(task),
        **({"limit": limit} if limit is not None else {}),
    }


def metrics(score: dict[str, Any]) -> list[str]:
    """Return the names of a task's metrics."""
    return [key for key, value in score.items() if isinstance(value, float) and not key.endswith("_stderr")]


def note(run: "Run", scores: dict[str, dict[str, Any]]) -> None:
    """Write the scores into the run's manifest, beside those of other tasks."""
    from rwkv_lab.runs import manifest

    found = manifest.read_manifest(run.path)
    manifest.write_manifest(run.path, found | {KEY: (found.get(KEY) or {}) | scores})


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
