"""Help on commands, groups and keys: read from YAML headers and config dataclasses. Imports no torch."""

import inspect
from collections.abc import Sequence
from pathlib import Path

from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.config.fields import Described, describe
from rwkv_lab.config.overrides import groups, options
from rwkv_lab.config.schema import COMPONENT_GROUPS, OPTIONAL_GROUPS, PLAIN_GROUPS, Config
from rwkv_lab.util.paths import REPOSITORY, as_typed

_INTRO = """\
python run.py [group=option]... [key=value]...      train one model; the same command again resumes or shows it
python run.py -m model=a,b seed=1,2 ...             a sweep: every combination, each in its own process
python run.py experiments=NAME                      a study: a prepared sweep
python run.py trainer=ddp ...                       one run on all GPUs of this machine; trainer.processes=N
python run.py trainer=fsdp ...                      the same with a share of the model on each
python run.py ... dry_run=true                      print what would run; train nothing
python run.py ... rerun=true                        start afresh although the run exists
python run.py ... --cfg job --resolve               print the composed configuration
python run.py --help GROUP                          every key of a group: type, default, bounds, meaning

Groups (group=option)"""

_KEYS = """
Common keys
  seed=1  study=NAME  runs_dir=PATH                    trainer.tokens=2M | trainer.steps=500
  trainer.batch_size  trainer.accumulate               trainer.precision=auto|fp32|tf32|bf16|fp16
  trainer.device=auto|cpu|cuda  trainer.threads        trainer.log_every  eval_every  checkpoint_every
  model.n_layer  n_embd  n_head  ctx_len               model.head_qk_dim  token_shift  small_init_emb  norm
  model.init_from=RUN_OR_FILE                          data.path=FILE  data.train_path  data.val_path  data.order
  schedule.lr_init  lr_final  warmup_steps             schedule.fit=FIT.json  tracker.mode=offline|online|disabled

Exit codes: 0 complete, 1 failed or busy elsewhere, 2 a mistake in the command, 130 stopped and resumable."""


def usage() -> str:
    """Return the help text of run.py, with the groups and studies at hand."""
    shown = [group for group in groups() if group != "experiments"]
    parts = [_INTRO, *(f"  {group:<10} {', '.join(options(group))}" for group in shown)]
    parts += ["\nStudies (experiments=NAME)", *_headlines(REPOSITORY / "experiments")]
    launchers = REPOSITORY / "conf" / "hydra" / "launcher"
    parts += ["\nLaunchers of a sweep or study (hydra/launcher=NAME)", *_headlines(launchers), _KEYS]
    return as_typed("\n".join(parts))


def _headlines(folder: Path) -> list[str]:
    return [f"  {file.stem:<24} {_headline(file)}" for file in sorted(folder.glob("*.yaml"))]


def _headline(path: Path) -> str:
    """Return the first comment of a YAML file, without the command it ends with."""
    lines = (line for line in path.read_text().splitlines() if line.startswith("#") and "@package" not in line)
    return next(lines, "").lstrip("# ").partition(" python run.py")[0].rstrip(": ")


def fields_of(topic: str) -> str:
    """Return every key of a group, ``GROUP`` or ``GROUP=OPTION``, with type, default, bounds and meaning.

    Raises UserError, which lists the groups, for another topic.
    """
    group, _, option = topic.partition("=")
    if group in PLAIN_GROUPS:
        return _table(group, describe(PLAIN_GROUPS[group]))
    if group in (*COMPONENT_GROUPS, *OPTIONAL_GROUPS):
        return _members(group, [option] if option else registry.names(group))
    if group in ("run", "top"):
        plain = [
            row for row in describe(Config) if row.name not in (*PLAIN_GROUPS, *COMPONENT_GROUPS, *OPTIONAL_GROUPS)
        ]
        return _table("", plain)
    if group in groups():
        return "\n".join([f"Options of {group}", *_headlines(REPOSITORY / "conf" / group)])
    known = [*COMPONENT_GROUPS, *PLAIN_GROUPS, *groups()]
    raise UserError(
        f"--help {topic}: not a group{nearest(topic, known)}: choose one of {', '.join(dict.fromkeys(known))}"
    )


def _members(group: str, names: Sequence[str]) -> str:
    rows = {name: describe(registry.get(group, name)) for name in names}
    shared = [row for row in next(iter(rows.values())) if all(row in each for each in rows.values())]
    parts = [_table(group, shared)] if len(names) > 1 and shared else []
    for name, described in rows.items():
        own = [row for row in described if row.name != "name" and (len(names) == 1 or row not in shared)]
        doc = (inspect.getdoc(registry.get(group, name)) or "").splitlines()[0].replace("``", "")
        parts.append(f"{group}={name}   {doc}" + ("\n" + _table(group, own) if own else ""))
    return "\n\n".join(parts)


def _table(group: str, rows: Sequence[Described]) -> str:
    """Return a line a key: name, type, default, and meaning with bounds."""
    keys = [f"{group}.{row.name}" if group else row.name for row in rows]
    widths = [max((len(text) for text in column), default=0) for column in (keys, [r.type for r in rows])]
    lines = []
    for key, row in zip(keys, rows, strict=True):
        meaning = ", ".join(part for part in (row.comment, row.bounds) if part)
        lines.append(f"  {key:<{widths[0]}}  {row.type:<{widths[1]}}  {row.default:<10}  {meaning}".rstrip())
    return "\n".join(lines)
