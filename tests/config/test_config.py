"""Every configuration file composes, resolves and passes the final check; values win in the documented order."""

import itertools
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rwkv_lab.config import registry
from rwkv_lab.config.check import schema_of
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import GROUPS
from rwkv_lab.sweeps import plan
from rwkv_lab.util.paths import REPOSITORY
from tests.composing import checked, compose, hydra_context


def is_task(member: type) -> bool:
    return member.weighted and member.holds == "token ids"


NEEDS = {
    "data=text": ["data.path=some.txt"],
    "data=npy": ["data.path=some.npy", "tokenizer=ids"],
    "data=binidx": ["data.path=some.idx", "tokenizer=ids"],
    "data=jsonl": ["data.path=some.jsonl"],
    "tokenizer=ids": ["data=npy", "data.path=some.npy"],
    "tokenizer=bpe": ["tokenizer.path=tokenizer.json"],
    "tokenizer=run": [f"tokenizer.path={REPOSITORY}"],
    "tokenizer=pixels": ["data=images"],
    "data=images": ["tokenizer=pixels"],
    "schedule=fitted": ["schedule.fit=fit.json"],
    "experiments=finetune": [f"model.init_from={next((REPOSITORY / 'tests/cases').rglob('model.safetensors'))}"],
} | {f"data={name}": ["tokenizer=ids"] for name, member in registry.members("data").items() if is_task(member)}


def options() -> list[str]:
    groups = sorted(path for path in (REPOSITORY / "conf").iterdir() if path.is_dir() and path.name != "hydra")
    return [f"{group.name}={file.stem}" for group in groups for file in sorted(group.glob("*.yaml"))]


@pytest.fixture(scope="module", autouse=True)
def context():
    with hydra_context():
        yield


@pytest.mark.parametrize("option", options())
def test_every_option_composes(option):
    config = checked(option, *NEEDS.get(option, []))
    group, _, name = option.partition("=")
    if group in ("model", "data", "tokenizer", "optimizer", "schedule", "tracker"):
        assert getattr(config, group).name == name


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_says_what_it_is_and_how_to_use_it(path: Path):
    comment = next(line for line in path.read_text().splitlines() if line.startswith("#") and "@package" not in line)
    assert "run.py" in comment


@pytest.mark.parametrize("study", sorted((REPOSITORY / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_composes_with_all_its_jobs(study: Path):
    composed = compose(f"experiments={study.stem}", hydra=True)
    assert composed.study == study.stem
    texts = plan.study_overrides(composed.hydra.sweeper.params or {})
    swept = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [override.input_line]
        for override in OverridesParser.create().parse_overrides(texts)
    ]
    names = set()
    for job in itertools.product(*swept):
        config = checked(f"experiments={study.stem}", *NEEDS.get(f"experiments={study.stem}", []), *job)
        names.add(repr(config))
    assert len(names) == len(list(itertools.product(*swept)))


def test_command_line_beats_debug_beats_study_beats_groups():
    assert checked().trainer.batch_size == 8
    assert checked("debug=smoke").trainer.batch_size == 4
    assert checked("experiments=arch_comparison").model.ctx_len == 128
    assert checked("experiments=arch_comparison", "debug=smoke").trainer.steps == 6
    assert checked("experiments=arch_comparison", "debug=smoke", "trainer.steps=9").trainer.steps == 9


def test_size_is_laid_over_the_model_and_under_the_command_line():
    assert checked("size=l6_d512").model.n_layer == 6
    assert checked("size=l6_d512", "model.n_layer=3").model.n_layer == 3


def test_resolving_has_no_missing_values():
    config = compose()
    assert all(schema_of(group, config[group].get("name")) for group in GROUPS)


@pytest.mark.parametrize("text", ["2M", "2e6", "2000000", "2_000_000", "2000k", "0.002B"])
def test_counts_written_differently_are_one_number(text):
    assert checked(f"trainer.tokens={text}").trainer.tokens == 2_000_000


@pytest.mark.parametrize("text", ["0", "-5", "many", "1.5", "nan", "inf", "", True])
def test_counts_that_are_none_are_refused(text):
    with pytest.raises(UserError, match=r"trainer\.tokens must be a positive integer"):
        checked(f"trainer.tokens='{text}'")
