"""Scores by lm-evaluation-harness: the log-likelihoods are those of the model, and compare shows what a run scored."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from rwkv_lab.config.errors import UserError
from rwkv_lab.data.tokenizers.char import CharTokenizer
from rwkv_lab.inference.sampling import generate
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


CASES = Path(__file__).parent.parent / "cases" / "tasks"


@pytest.mark.parametrize("file", sorted(CASES.glob("*.jsonl")), ids=lambda file: file.stem)
def test_tasks_of_ones_own(file):
    from lm_eval.tasks import TaskManager

    from rwkv_lab.inference.harness import local_task

    loaded = TaskManager(include_defaults=False).load([local_task(file)])["tasks"]
    assert list(loaded) == [file.stem]
    (task,) = loaded.values()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    task.build_all_requests()
    asked = {instance.args[0] for instance in task.instances}
    assert asked == {row["context"] for row in rows}
    if "choices" in rows[0]:
        words = {instance.args[1] for instance in task.instances}
        assert words == {f" {word}" for row in rows for word in row["choices"]}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"context": "a"}',
        '{"context": "a", "choices": ["b"], "label": 1}',
        '{"context": 1, "answer": "b"}',
    ],
)
def test_lines_of_a_task_that_cannot_be_read(tmp_path, line):
    from rwkv_lab.inference.harness import local_task

    (tmp_path / "x.jsonl").write_text('{"context": "a", "answer": "b"}\n' + line)
    with pytest.raises(UserError, match=r"x\.jsonl:2"):
        local_task(tmp_path / "x.jsonl")
