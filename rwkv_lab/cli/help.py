"""``python run.py --help`` in our own words; reads the YAML files' first lines, imports neither torch nor Hydra."""

from pathlib import Path

_INTRO = """\
python run.py [group=option]... [key=value]...      train one model (the same command again resumes or shows it)
python run.py -m model=a,b seed=1,2 ...             a sweep: every combination, each in a process of its own
python run.py experiments=NAME                      a study: a prepared sweep
python run.py trainer=ddp ...                       one run on all GPUs of this machine; trainer.processes=N
python run.py ... dry_run=true                      say what would run; train nothing
python run.py ... rerun=true                        start afresh although the run exists
python run.py ... --cfg job --resolve               print the composed configuration
"""

_KEYS = """\
Common keys
  seed=1  study=NAME                                   trainer.tokens=2M | trainer.steps=500
  trainer.batch_size  trainer.accumulate               trainer.precision=auto|fp32|tf32|bf16
  trainer.device=auto|cpu|cuda  trainer.threads        trainer.log_every  eval_every  checkpoint_every
  model.n_layer  n_embd  n_head  ctx_len               model.head_qk_dim  token_shift  small_init_emb  norm
  model.init_from=RUN_OR_FILE                          data.path=FILE  data.train_path  data.val_path  data.order
  schedule.lr_init  lr_final  warmup_steps             schedule.fit=FIT.json  tracker.mode=offline|online|disabled

Exit codes: 0 complete, 1 failed or busy elsewhere, 2 a mistake in the command, 130 stopped and resumable."""


def _headline(path: Path) -> str:
    lines = (line for line in path.read_text().splitlines() if line.startswith("#") and "@package" not in line)
    return next(lines, "").lstrip("# ").partition(" python run.py")[0].rstrip(": ")


def usage(repository: Path) -> str:
    """The help text, with the groups and studies found in the ``repository``."""
    parts = [_INTRO]
    for folder in sorted((repository / "conf").iterdir()):
        if folder.is_dir() and folder.name != "hydra":
            options = sorted(path.stem for path in folder.glob("*.yaml"))
            parts.append(f"  {folder.name:<10} {', '.join(options)}")
    parts.append("\nStudies (experiments=NAME)")
    for study in sorted((repository / "experiments").glob("*.yaml")):
        parts.append(f"  {study.stem:<24} {_headline(study)}")
    parts.append("\nLaunchers of a sweep or study (hydra/launcher=NAME)")
    for launcher in sorted((repository / "conf" / "hydra" / "launcher").glob("*.yaml")):
        parts.append(f"  {launcher.stem:<24} {_headline(launcher)}")
    return "\n".join([parts[0] + "\nGroups (group=option)", *parts[1:], "", _KEYS])
