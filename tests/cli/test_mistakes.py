"""Every mistake is one plain sentence on standard error and exit code 2, and leaves no run behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from rwkv_lab.cli import train
from rwkv_lab.config import check, hydra
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.run_hash import named_files
from tests.lab import TINY, Lab

PROPOSAL: dict[str, Any] = {
    "steps": 3,
    "rates": [0.1, 0.1, 0.1],
    "predicted_final_loss": 1.0,
    "interval": [0.9, 1.1],
    "level": 0.9,
    "column": "val_loss",
    "law": "multi_power",
    "kind": "free",
}


class Said(NamedTuple):
    """How a command line ended."""

    exit_code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files no run can use, and one good text."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (folder / "latin.txt").write_bytes("café ".encode("latin-1") * 500)
    (folder / "utf16.txt").write_bytes(("hello " * 500).encode("utf-16"))
    (folder / "short.txt").write_text("too short a text")
    (folder / "good.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    (folder / "not.json").write_text("rates: 1")
    (folder / "other.json").write_text('{"proposals": []}')
    (folder / "three.json").write_text(json.dumps({"proposal": PROPOSAL}))
    (folder / "nan.json").write_text(json.dumps({"proposal": PROPOSAL | {"rates": [0.1, float("nan"), 0.1]}}))
    (folder / "garbage.safetensors").write_bytes(b"garbage" * 100)
    (folder / "garbage.npy").write_text("garbage")
    (folder / "folder").mkdir()
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """run.py's command line in this process, with runs/ in a temporary folder."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def call(*overrides: str) -> Said:
        exit_code = train.main([*TINY, "trainer.steps=2", f"runs_dir={tmp_path / 'runs'}", *overrides])
        captured = capsys.readouterr()
        return Said(exit_code, captured.out, captured.err)

    return call


def assert_one_sentence(said: Said, *fragments: str) -> None:
    assert said.exit_code == 2, said
    assert said.err.startswith("error: "), said.err
    assert said.err.count("\n") == 1, said.err
    for fragment in fragments:
        assert fragment in said.err


# What is typed, and parts of the sentence: the key or file, what is wrong, what is allowed or the nearest valid name.
TYPED = [
    ("trainer.stepz=3", "trainer.stepz", "'steps'", "batch_size"),
    ("+trainer.stepz=3", "trainer.stepz", "'steps'", "batch_size"),
    ("++trainer.stepz=3", "trainer.stepz", "'steps'"),
    ("+typo=3", "typo", "study", "seed"),
    ("modl.n_layer=3", "modl.n_layer", "'model'"),
    ("model.n_head=4", "model.n_head", "n_embd"),
    ("+model._target_=os.system", "model._target_"),
    ("model=rwkv_v5", "model=rwkv_v5", "mha_pro, mha_rotary"),
    ("model=", "model=", "rwkv_v4"),
    ("model=3", "model=3", "rwkv_v4"),
    ("size=huge", "size=huge", "small"),
    ("data=enwik9", "data=enwik9", "'enwik8'"),
    ("experiments=nothing", "experiments=nothing", "lr_probe"),
    ("experiment=nothing", "experiments=nothing", "lr_probe"),
    ("resume=true", "resume", "same command"),
    ("hydra.run.dir=/x", "hydra.run.dir", "runs_dir"),
    ("hydra.sweep.dir=/x", "hydra.sweep.dir", "runs_dir"),
    ("hydra/launcher=cores", "hydra/launcher=cores", "-m"),
    ("-m schedule.lr_init=interval(1e-4,1e-2)", "schedule.lr_init", "hydra/sweeper=search"),
    ("data=/a/b.txt", "data=text data.path=/a/b.txt"),
    ("data.path=müller.txt", "data.path", '"müller.txt"'),
    ("trainer.tokens=banana", "trainer.tokens", "banana"),
    ("--package foo", "--package"),
    ("debug=smok", "debug=smok", "'smoke'"),
    ("-m hydra/launcher=slurmm", "hydra/launcher=slurmm", "basic"),
    ("seed=x", "seed", "integer"),
    ("seed=1,2", "seed=1,2", "-m", "[a,b]"),
    ("steps=3", "steps", "'trainer.steps'"),
    ("+batch_size=3", "batch_size", "'trainer.batch_size'"),
    ("lr=3", "lr", "'schedule.lr_init'"),
    ("schedule.lr=3", "schedule.lr", "'lr_init'"),
    ("model=RWKV_v4", "model=RWKV_v4", "'rwkv_v4'"),
    ("+model=mha_pro", "model=OPTION"),
    ("++model=mha_pro", "model=OPTION"),
    ("data@foo=text", "data=OPTION"),
    ("model", "model", "key=value"),
    ("model:rwkv_v4", "model:rwkv_v4", "key=value"),
    ("seed=1;2", "seed=1;2", "key=value"),
    ("--model=rwkv_v4", " model=rwkv_v4"),
    ("--trainer.steps 5", " trainer.steps=VALUE"),
    ("--resolve", "--resolve", "--cfg job"),
    ("-m --info all", "--multirun", "--info"),
    ("--config-path=/nowhere", "--config-path"),
    ("hydra.mode=FOO", "hydra.mode=FOO", "RUN, MULTIRUN"),
    ("~foo", "~foo"),
    ("~trainer.steps", "~trainer.steps", "trainer.steps=null"),
    ("garbage", "garbage", "key=value"),
    ("=3", "=3", "key=value"),
    ("model..n_layer=3", "model..n_layer=3"),
    ("--nope", "--nope", "--help"),
    ("--mulirun", "'--multirun'"),
    ("--config-name=foo", "--config-name"),
    ("model.n_layer=${oc.env:NO_SUCH}", "model.n_layer", "NO_SUCH"),
    ("model.n_layer=${nope}", "model.n_layer", "nope"),
    ("model.ctx_len=1000000", "model.ctx_len=1000000", "at most"),
    ("data=text data.path=FILES/missing.txt", "data.path=", "missing.txt does not exist"),
    ("data=text data.path=FILES/empty.txt", "data.path=", "empty.txt is empty"),
    ("data=text data.path=FILES/binary.txt", "data.path=", "binary.txt is a binary file", "tokenizer=byte"),
    ("data=text data.path=FILES/latin.txt", "data.path=", "latin.txt is not UTF-8 text (byte 3)", "tokenizer=byte"),
    ("data=text data.path=FILES/short.txt", "model.ctx_len=16 is too long", "give more data"),
    ("data=text data.path=FILES/utf16.txt", "utf16.txt is a binary file"),
    ("data=text data.path=FILES/*.md", "*.md matches no file"),
    ("data=text data.path=/dev/null", "data.path=/dev/null is neither a file nor a folder"),
    ("data=text data.train_path=FILES/good.txt data.val_path=FILES/empty.txt", "data.val_path=", "empty.txt is empty"),
    ("data=text data.path=FILES/good.txt data.split=[0.999,0.001]", "too long for the validation text", "more data"),
    ("data=text data.path=FILES/folder", "data.path=", ".txt file"),
    ("data=npy tokenizer=ids data.path=FILES/garbage.npy", "data.path=", "garbage.npy", "numpy.save"),
    ("data=text data.path=FILES/good.txt data.split=[100000,20]", "data.split asks for 100020 bytes", "has 9000"),
    ("data.cache_dir=/proc/nowhere", "data.cache_dir=/proc/nowhere", "cannot be written"),
    ("tokenizer=bpe tokenizer.path=FILES/good.txt", "tokenizer.path=", "good.txt", "tokenizer.json"),
    ("model.init_from=FILES/garbage.safetensors", "garbage.safetensors"),
    ("model.init_from=FILES/folder", "model.init_from=", "model.safetensors"),
    ("schedule=fitted", "schedule.fit"),
    ("schedule=fitted schedule.fit=FILES/not.json", "schedule.fit=", "not.json is not JSON", "analysis fit"),
    ("schedule=fitted schedule.fit=FILES/other.json", "schedule.fit=", "other.json"),
    ("schedule=fitted schedule.fit=FILES/three.json", "3 steps and the run has 2", "trainer.steps=3"),
    ("schedule=fitted schedule.fit=FILES/nan.json trainer.steps=3", "nan.json has rates that are missing, negative or"),
    ("schedule.warmup_steps=100", "schedule.warmup_steps=100", "2"),
    (
        "trainer.precision=tf32 trainer.device=cpu",
        "trainer.precision=tf32 is not available on cpu",
        "choose auto, fp32, bf16 or fp16",
    ),
    ("trainer.device=cuda:99", "trainer.device=cuda:99 is not here", "choose cpu or auto"),
]


@pytest.mark.parametrize("case", TYPED, ids=lambda case: case[0])
def test_typed(command: Command, files: Path, tmp_path: Path, case: tuple[str, ...]) -> None:
    said = command(*case[0].replace("FILES", str(files)).split())
    assert_one_sentence(said, *case[1:])
    assert not list(tmp_path.glob("runs/*/*/run.json"))


# Values of keys, over the groups named first; the same checks without a composition each.
VALUES = [
    ("", "seed=1.5", "seed", "integer", "1.5"),
    ("", "seed=-1", "seed", "at least 0"),
    ("", "seed=null", "seed", "null"),
    ("", "seed=99999999999999999999", "seed", "at most"),
    ("", "study=a/b", "study=a/b", "letters, digits"),
    ("", "study=..", "study=.."),
    ("", "rerun=perhaps", "rerun", "true or false"),
    ("", "model.n_layer=0", "model.n_layer", "at least 1"),
    ("", "model.n_layer=two", "model.n_layer", "integer"),
    ("", "model.n_layer=1.5", "model.n_layer", "integer"),
    ("", "model.n_embd=-4", "model.n_embd", "at least 1"),
    ("", "model.ctx_len=0", "model.ctx_len", "at least 1"),
    ("", "model.token_shift=quarter", "model.token_shift", "none, half, learned"),
    ("", "model.norm=batch", "model.norm", "pre, post"),
    ("", "model.head_qk_dim=-1", "model.head_qk_dim", "at least 0"),
    ("", "model.name=foo", "model.name=foo", "rwkv_v4"),
    ("", "model.init_from=/nowhere", "model.init_from=/nowhere"),
    ("model=mha_rotary", "model.n_embd=30 model.n_head=4", "model.n_head", "4 heads cannot share 30 channels"),
    ("model=mha_rotary", "model.n_head=0", "model.n_head", "at least 1"),
    ("", "data.train_path=x.txt", "data.train_path is unknown", "data=text"),
    ("", "data.path=x.txt", "data.path is unknown", "data=text"),
    ("", "data.order=shuffled", "data.order=shuffled", "random, cube, sequential"),
    ("", "data.split=half", "data.split", "list"),
    ("", "data.split=[0.9,0.9]", "data.split=[0.9,0.9]", "at most 1"),
    ("", "data.split=[0.5]", "data.split=[0.5]", "[train,val]"),
    ("data=text", "", "data.path is missing", "data.path=FILE"),
    ("data=text", "data.train_path=a.txt", "data.val_path is missing"),
    ("data=text", "data.path=a.txt data.train_path=b.txt", "exclude each other"),
    ("tokenizer=bpe", "", "tokenizer.path is missing"),
    ("tokenizer=ids", "", "tokenizer=ids", "data=kjv", "byte, char"),
    ("", "trainer.steps=0", "trainer.steps", "positive integer", "2M"),
    ("", "trainer.steps=many", "trainer.steps", "positive integer"),
    ("", "trainer.tokens=0", "trainer.tokens", "positive integer", "2M"),
    ("", "trainer.tokens=5x", "trainer.tokens", "positive integer", "2M"),
    ("", "trainer.tokens=true", "trainer.tokens", "positive integer"),
    ("", "trainer.batch_size=0", "trainer.batch_size", "at least 1"),
    ("", "trainer.accumulate=3", "trainer.batch_size=8", "trainer.accumulate=3", "multiple of 3"),
    ("", "trainer.clip=-1", "trainer.clip", "at least 0"),
    ("", "trainer.precision=fp8", "trainer.precision=fp8", "auto, fp32, tf32, bf16"),
    ("", "trainer.device=tpu", "trainer.device=tpu", "auto, cpu, cuda"),
    ("", "trainer.threads=100000", "trainer.threads", "at most 1024"),
    ("", "trainer.steps=2.5", "trainer.steps", "positive integer"),
    ("", "trainer.precision=FP32", "trainer.precision=FP32", "'fp32'"),
    ("", "trainer.processes=2", "trainer.processes=2", "trainer=ddp"),
    ("trainer=ddp", "trainer.device=cuda:0", "trainer.device=cuda:0", "trainer.device=cuda)"),
    ("trainer=ddp", "trainer.timeout=0", "trainer.timeout", "at least 1"),
    ("trainer=ddp", "trainer.processes=0", "trainer.processes", "at least 1"),
    ("trainer=ddp", "trainer.processes=3", "trainer.batch_size=8", "3 processes", "multiple of 3"),
    ("", "trainer.clip=.nan", "trainer.clip", "nan"),
    ("", "trainer.strategy=pipeline", "trainer.strategy=pipeline", "ddp"),
    ("", "trainer.threads=0", "trainer.threads", "at least 1"),
    ("", "trainer.log_every=0", "trainer.log_every", "at least 1"),
    ("", "trainer.overfit=maybe", "trainer.overfit", "true or false"),
    ("", "optimizer.name=sgd", "optimizer.name=sgd", "adam, adamw"),
    ("", "optimizer.betas=[0.9,1.5]", "optimizer.betas", "below 1"),
    ("", "optimizer.betas=[a,b]", "optimizer.betas[0]", "number"),
    ("", "optimizer.betas_late=[0.9,0.99]", "optimizer.betas_late", "optimizer.betas_late_step"),
    ("", "optimizer.weight_decay=-1", "optimizer.weight_decay", "at least 0"),
    ("", "schedule.lr_init=-1", "schedule.lr_init", "at least 0"),
    ("", "schedule.lr_init=fast", "schedule.lr_init", "number"),
    ("", "schedule.lr_init=.nan", "schedule.lr_init", "nan"),
    ("", "schedule.warmup_steps=-1", "schedule.warmup_steps", "at least 0"),
    ("schedule=wsd", "schedule.decay_fraction=2", "schedule.decay_fraction", "at most 1"),
    ("schedule=wsd", "schedule.decay_shape=round", "schedule.decay_shape=round", "linear, cosine"),
    ("schedule=exponential", "schedule.lr_final=0", "schedule.lr_final", "above 0"),
    ("schedule=piecewise", "schedule.stages=[]", "schedule.stages", "until"),
    ("schedule=piecewise", "schedule.stages=[{until: 0.5, lr: 1e-4}]", "schedule.stages", "0.5", "1.0"),
    ("schedule=piecewise", "schedule.stages=[{untl: 1, lr: 1e-4}]", "schedule.stages[0].untl", "'until'"),
    ("", "tracker.mode=sometimes", "tracker.mode=sometimes", "offline, online, disabled"),
    ("", "tracker.name=mlflow", "tracker.name=mlflow", "none", "wandb"),
    ("", "ops.backend=triton", "ops.backend=triton", "auto, native, reference"),
]


@pytest.fixture(scope="module")
def composed(repository: Path) -> Callable[[str], DictConfig]:
    """The composition of the groups in a word such as ``model=mha_rotary``."""
    hydra.prepare()
    made: dict[str, DictConfig] = {}

    def config(groups: str) -> DictConfig:
        if groups not in made:
            with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
                made[groups] = hydra_compose("config", overrides=groups.split())
        return made[groups].copy()

    return config


def complaint(config: DictConfig, overrides: str) -> str | None:
    """What is said of ``config`` with these ``key=value`` words."""
    try:
        for override in overrides.split(" ") if "{" not in overrides else [overrides]:
            key, _, value = override.partition("=")
            if key:
                OmegaConf.update(config, key, yaml.safe_load(value))
        named_files(check.check(config))
    except UserError as mistake:
        return str(mistake)
    except Exception as error:
        return hydra.explain(error)
    return "nothing is wrong"


@pytest.mark.parametrize("case", VALUES, ids=lambda case: f"{case[0]} {case[1]}".strip())
def test_value(composed: Callable[[str], DictConfig], case: tuple[str, ...]) -> None:
    groups, overrides, *fragments = case
    said = complaint(composed(groups), overrides)
    assert said is not None
    assert "\n" not in said
    for fragment in fragments:
        assert fragment in said


def test_one_options_of_a_group_at_a_time(command: Command) -> None:
    assert_one_sentence(command("model=[rwkv_v4,rwkv_v1]"), "model=a,b", "-m")


@pytest.mark.parametrize(
    ("overrides", "fragment"),
    [
        ("-m seed=range(1,1)", "the sweep has no jobs"),
        ("-m seed=1,1", "two jobs of the sweep are the same run"),
        ("-m study=a,b", "study cannot be swept"),
        ("-m experiments=lr_probe,tricks", "experiments cannot be swept"),
    ],
)
def test_sweep_as_a_whole(command: Command, overrides: str, fragment: str) -> None:
    assert_one_sentence(command(*overrides.split()), fragment)


def test_override_may_take_its_value_from_another_key(command: Command) -> None:
    assert command("schedule.lr_final=${schedule.lr_init}", "dry_run=true").exit_code == 0


def test_from_the_shell(lab: Lab) -> None:
    done = lab.run("model=rwkv_v5", expect=2)
    assert done.stderr.startswith("error: model=rwkv_v5 does not exist")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.slow
def test_in_a_sweep_the_others_go_on(lab: Lab) -> None:
    done = lab.run("-m", "debug=smoke", *TINY, "study=half_wrong", "model.norm=batch,pre", expect=1)
    assert "model.norm=batch" in done.stdout and "pre, post" in done.stdout
    assert "1 complete, 1 left out" in done.stdout
    assert json.loads((lab.only_run("half_wrong") / "run.json").read_text())["status"] == "complete"
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_through_torchrun_one_process_says_it(lab: Lab) -> None:
    done = lab.python("-m", "torch.distributed.run", "--nproc-per-node", "2", "run.py", "seed=x", expect=1)
    assert done.stderr.count("error: seed must be an integer") == 1
    assert "rwkv_lab/cli/train.py" not in done.stderr
