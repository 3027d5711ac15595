"""Scores by lm-evaluation-harness: the log-likelihoods are those of the model, and compare shows what a run scored."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from rwkv_lab.data.tokenizers.char import CharTokenizer
from rwkv_lab.inference.sampling import generate
from tests.in_process import make_here
from tests.models.test_convert import moved

pytestmark = pytest.mark.slow  # importing the harness takes some seconds
pytest.importorskip("lm_eval", reason="needs the extra eval")

LETTERS = CharTokenizer("\n abcdefghijklmnop")
CONTEXTS = ("ab", "c", "", "ab", "no\nme", "ab  ", "a long one of twenty")
CONTINUATIONS = ("ab", "b", "a", " longer one", "ba", "c", "a")


def harness(name, **fields):
    from rwkv_lab.inference.harness import Harness

    model = moved(name, **fields).eval()
    return model, Harness(model, LETTERS, batch_size=2)


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


@torch.no_grad()
def by_hand(model, context, continuation):
    ids = context + continuation
    p = F.log_softmax(model(torch.tensor([ids[:-1]]))[0], dim=-1)[len(context) - 1 :]
    chosen = torch.tensor(continuation)
    return float(p.gather(1, chosen[:, None]).sum()), bool((p.argmax(-1) == chosen).all())


@pytest.mark.parametrize(
    ("name", "fields"), [("rwkv_v4", {}), ("rwkv_v2", {"head_qk_dim": 8}), ("mha_pro", {})], ids=str
)
def test_log_likelihoods(name, fields, monkeypatch):
    model, evaluated = harness(name, **fields)
    pairs = list(zip(CONTEXTS, CONTINUATIONS, strict=True))
    if name == "mha_pro":
        pairs = [pair for pair in pairs if len("".join(pair)) < 10]  # inside its window
    want = [by_hand(model, *evaluated.encoded(*pair)) for pair in pairs]
    for logits in (1 << 25, 40):  # all at once, and a token or two at a time
        monkeypatch.setattr("rwkv_lab.inference.harness.LOGITS", logits)
        found = evaluated.loglikelihood(requests(*pairs), disable_tqdm=True)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in want]
        assert [value for value, _ in found] == pytest.approx([value for value, _ in want], abs=1e-4)


def test_spaces_before_a_word_belong_to_it():
    _, evaluated = harness("rwkv_v4")
    assert evaluated.encoded("ab  ", "c") == (LETTERS.encode("ab").tolist(), LETTERS.encode("  c").tolist())
    assert evaluated.encoded("", "c") == (LETTERS.start(), LETTERS.encode("c").tolist())


def test_the_greedy_continuation_is_known_as_such():
    model, evaluated = harness("rwkv_v4")
    context = LETTERS.encode("ab").tolist()
    greedy = LETTERS.decode(generate(model, context, 5, temperature=0.0))
    other = greedy[:-1] + ("a" if greedy[-1] != "a" else "b")
    found = evaluated.loglikelihood(requests(("ab", greedy), ("ab", other)), disable_tqdm=True)
    assert [each for _, each in found] == [True, False]


def test_rolling_reads_the_whole_text(monkeypatch):
    model, evaluated = harness("rwkv_v4")
    texts = ["abc" * 15, "a", "hello no\n" * 3, ""]
    want = [by_hand(model, LETTERS.start(), LETTERS.encode(text).tolist())[0] if text else 0.0 for text in texts]
    monkeypatch.setattr("rwkv_lab.inference.harness.LOGITS", 200)
    found = evaluated.loglikelihood_rolling(requests(*((text,) for text in texts)), disable_tqdm=True)
    assert found == pytest.approx(want, abs=1e-4)


def test_texts_end_at_their_stop_strings():
    model, evaluated = harness("rwkv_v4")
    whole = {
        text: LETTERS.decode(generate(model, LETTERS.encode(text).tolist(), 12, temperature=0.0)) for text in "abc"
    }
    stop = whole["b"][3]
    asked = [(text, {"until": [stop], "max_gen_toks": 12}) for text in "abc"] + [
        ("a", {"until": "", "max_gen_toks": 4})
    ]
    found = evaluated.generate_until(requests(*asked), disable_tqdm=True)
    assert found == [*(whole[text].partition(stop)[0] for text in "abc"), whole["a"][:4]]


def tasks_in(folder):
    """The tasks of tests/cases, whose YAML has to name the folder they are in."""
    shutil.copytree(Path(__file__).parent.parent / "cases" / "tasks", folder)
    for file in folder.glob("*.yaml"):
        file.write_text(file.read_text().replace("FOLDER", str(folder)))
    return folder


def test_the_command_and_the_comparison(tmp_path, monkeypatch, capsys):
    from analysis.__main__ import main as analysis
    from rwkv_lab.cli import lm_eval

    here, folder = make_here(tmp_path, monkeypatch), tasks_in(tmp_path / "tasks")
    assert here.run("trainer.steps=2") == 0
    run = here.folder()
    for tasks in ("counting", str(folder / "sums.yaml")):
        lm_eval.main([str(run), "--tasks", tasks, "--tasks-dir", str(folder), "--limit", "8", "--json"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    noted = here.loaded().manifest["evals"]
    assert noted.keys() == {"counting", "sums"} and noted["sums"] == printed["sums"]
    assert 0 <= noted["counting"]["acc"] <= 1 and noted["counting"]["samples"] == 8 and noted["sums"]["limit"] == 8
    assert here.loaded().status == "complete"

    assert analysis(["compare", str(run.parent), "--out", str(tmp_path / "out")]) == 0
    assert "counting (acc)" in capsys.readouterr().out
    assert "sums (exact_match)" in (tmp_path / "out" / "compare.md").read_text()
    assert "counting (acc)" in (tmp_path / "out" / "groups.csv").read_text()
    assert "counting (acc)" in (tmp_path / "out" / "compare.html").read_text()
    assert (tmp_path / "out" / "tasks.png").stat().st_size > 5000
