"""A tokenizer of another package: one file, found by its entry point, trained with."""

import pytest

from rwkv_lab import data
from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from tests.in_process import make_here

VOWELS = '''
import json
from dataclasses import dataclass

import numpy as np

from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import TokenizerConfig
from rwkv_lab.config.registry import register
from rwkv_lab.data.sources import text_blocks


class Vowels:
    unknown_id = None

    def __init__(self, letters):
        self.letters = letters
        self.vocab_size = len(letters) + 1

    def encode(self, text):
        return np.array([self.letters.find(letter) + 1 for letter in text], np.int64)

    def decode(self, ids):
        return "".join(("-" + self.letters)[i] for i in ids)

    def start(self):
        return [0]

    def to_json(self):
        return json.dumps({"kind": "vowels", "letters": self.letters})

    def stream(self, segments):
        for text in text_blocks(segments):
            yield self.encode(text), np.array([len(letter.encode()) for letter in text], np.uint8)

    def bytes_of_ids(self):
        return 0


@register("tokenizer", "vowels")
@dataclass
class VowelsConfig(TokenizerConfig):
    """Vowels and the rest."""

    name: str = "vowels"
    letters: str = "aeiou"  # one token each

    def build(self, sources):
        return Vowels(self.letters)

    @classmethod
    def from_json(cls, stored):
        return Vowels(stored["letters"])
'''


@pytest.fixture
def vowels(tmp_path, monkeypatch):
    """The file above as an installed package."""
    package = tmp_path / "site"
    (package / "vowels-1.dist-info").mkdir(parents=True)
    (package / "vowels_tokenizer.py").write_text(VOWELS)
    (package / "vowels-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vowels\nVersion: 1\n")
    (package / "vowels-1.dist-info" / "entry_points.txt").write_text(
        f"[{registry.ENTRY_POINTS}]\nvowels = vowels_tokenizer\n"
    )
    monkeypatch.syspath_prepend(package)
    registry._load_entry_points.cache_clear()
    registry._discover.cache_clear()
    yield
    registry._members["tokenizer"].pop("vowels", None)
    registry._load_entry_points.cache_clear()
    registry._discover.cache_clear()


def test_a_tokenizer_in_one_file_is_trained_with_and_resumes(vowels, tmp_path, monkeypatch):
    here = make_here(tmp_path, monkeypatch)
    settings = ["tokenizer=vowels", "tokenizer.letters=iouyae"]
    here.kill_at(7, *settings)
    assert here.run(*settings) == 0
    run = here.loaded()
    assert run.manifest["data"]["vocab_size"] == 7 and run.config["tokenizer"]["letters"] == "iouyae"
    assert set((run.path / "sample.txt").read_text()) <= set("-iouyae")
    stored = data.from_json((run.path / "tokenizer.json").read_text())
    assert stored.decode(stored.encode("a minus i")) == "a--i-u--i"


def test_the_tokenizer_of_a_run_serves_a_new_text(tmp_path, monkeypatch):
    here = make_here(tmp_path, monkeypatch)
    assert here.run("trainer.steps=1") == 0
    first = here.loaded().path
    stored = (first / "tokenizer.json").read_text()
    other = tmp_path / "other.txt"
    other.write_text("Quite another text, with letters of its own: zzz.\n" * 20)
    names = [str(first), f"faulty/{first.name}", first.name[:-3], first.name.rpartition("-")[2]]
    for name in names:
        more = [f"data.path={other}", "tokenizer=run", f"tokenizer.path={name}", f"runs_dir={here.runs}"]
        assert here.run("trainer.steps=1", *more, study="other") == 0
    (second,) = (here.runs / "other").glob("*/tokenizer.json")
    assert second.read_text() == stored
    flipped = stored.replace("p", "q", 1)
    (first / "tokenizer.json").write_text(flipped)
    with pytest.raises(UserError, match=str(first / "tokenizer.json")):
        here.run("trainer.steps=1", *more, study="other")
