"""The command: what it writes and where, what it says, and its mistakes."""

import subprocess
import sys

import pytest

from analysis.cli import main
from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import find


@pytest.fixture
def study(tmp_path, make_run):
    for seed in (1, 2):
        make_run("rwkv_v4", seed, 1.8 + seed / 1000)
        make_run("mha_pro", seed, 1.9 + seed / 1000)
    make_run("rwkv_v1", 1, status="failed", part=0.3, facts={"reason": "[bold]out of memory[/bold]"})
    return tmp_path / "runs" / "study"


@pytest.mark.slow
def test_it_writes_the_page_the_tables_and_the_figures(study, capsys):
    assert main(["compare", str(study)]) == 0
    folder = study / "compare"
    figures = {
        f"{name}.{kind}"
        for name in ("loss_tokens", "loss_seconds", "loss_flops", "final_bpb")
        for kind in ("png", "svg", "pdf")
    }
    tables = {"compare.html", "compare.md", "groups.csv", "pairs.csv", "runs.csv"}
    assert {path.name for path in folder.iterdir()} == figures | tables
    assert all(path.stat().st_size > 300 for path in folder.iterdir() if path.suffix in (".png", ".svg", ".html"))
    shown = capsys.readouterr().out
    for part in ("rwkv_v4", "1.8015 ± 0.0007", "reference", "[bold]out of memory[/bold]", str(folder / "compare.html")):
        assert part in shown
    assert len(find(study)) == 5, "what was written must not be taken for a run"
    first = (folder / "loss_tokens.svg").read_bytes()
    assert main(["compare", str(study)]) == 0
    assert (folder / "loss_tokens.svg").read_bytes() == first, "the same runs give the same figure"


@pytest.mark.slow
def test_two_studies_and_a_run_share_the_folder_above_them(study, make_run, tmp_path):
    other = make_run("rwkv_v4", 3, 1.8, study="other", data="built in/corpus".replace("/", "-"))
    assert main(["compare", str(study), str(other)]) == 0
    names = {path.name for path in (tmp_path / "runs" / "compare").iterdir()}
    assert {"enwik8_loss_tokens.png", "built_in-corpus_final_bpb.svg", "compare.html"} <= names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--at-tokens", "many"], "--at-tokens: must be .*got many"),
        (["--at-seconds", "-1"], "--at-seconds.*got -1"),
        (["--level", "5"], "between 0 and 1"),
        (["--baseline", "rwkv_v5"], "did you mean 'rwkv_v4'"),
        (["--out", "run"], "is a run directory"),
    ],
)
def test_mistakes_are_one_sentence(study, arguments, said):
    if arguments[-1] == "run":
        arguments = ["--out", str(next(study.iterdir()))]
    with pytest.raises(UserError, match=said) as raised:
        main(["compare", str(study), *arguments])
    assert "\n" not in str(raised.value)


def test_paths_without_a_folder_in_common_need_one(study, monkeypatch):
    monkeypatch.setattr("os.path.commonpath", lambda paths: "/")
    with pytest.raises(UserError, match="--out DIR"):
        main(["compare", str(study)])


def test_a_folder_that_cannot_be_made(study, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        main(["compare", str(study), "--out", str(tmp_path / "file" / "below")])


def test_importing_the_commands_imports_nothing_heavy():
    heavy = {"torch", "matplotlib", "bokeh", "scipy", "rich"}
    code = f"import sys; from analysis.cli import commands; commands(); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_nothing_of_a_comparison_imports_torch():
    modules = ("records", "summary", "tables", "figures", "charts", "page")
    code = f"import sys\nfor name in {modules}: __import__('analysis.compare.' + name)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
