"""What is written for transformers loads there strictly, and computes and tokenises the same."""

import pytest
import torch

from rwkv_lab import models
from rwkv_lab.cli import convert
from rwkv_lab.data.tokenizers.bpe import read_bpe, train
from rwkv_lab.data.tokenizers.byte import ByteTokenizer
from rwkv_lab.data.tokenizers.char import CharTokenizer
from rwkv_lab.inference.sampling import generate

pytestmark = pytest.mark.slow  # importing transformers takes some seconds
transformers = pytest.importorskip("transformers")

PLAIN = "abc xyz,\n\tABC\r\n  \u00e9\u4f60\u597d\U0001f600"


def written(tmp_path, tokenizer):
    """A folder for transformers, and the model in it; its tokens are those of ``tokenizer``."""
    model = models.build("rwkv_v4", vocab_size=tokenizer.vocab_size, n_layer=3, n_embd=32, ctx_len=16)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    run = tmp_path / "run"
    run.mkdir()
    models.save(model, run / "model.safetensors")
    (run / "tokenizer.json").write_text(tokenizer.to_json())
    convert.main([str(run), str(tmp_path / "hf"), "--to", "hf"])
    return model, str(tmp_path / "hf")


def test_the_same_logits_and_tokens(tmp_path):
    model, folder = written(tmp_path, CharTokenizer("".join(sorted(set(PLAIN)))))
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == "RwkvForCausalLM"
    assert not any(report.values())
    idx = torch.randint(0, model.vocab_size, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(idx).logits, model(idx), rtol=1e-5, atol=1e-5)
    drawn = theirs.generate(idx[:1, :5], attention_mask=torch.ones(1, 5), max_new_tokens=20, do_sample=False)
    assert drawn[0, 5:].tolist() == generate(model, idx[0, :5].tolist(), 20, temperature=0.0)


def bpe_tokenizer(tmp_path):
    (tmp_path / "text.txt").write_text(PLAIN * 50)
    train(tmp_path / "bpe.json", 270, [tmp_path / "text.txt"])
    return read_bpe(str(tmp_path / "bpe.json"))


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_the_same_token_ids(kind, tmp_path):
    tokenizer = {
        "byte": ByteTokenizer,
        "char": lambda: CharTokenizer("".join(sorted(set(PLAIN)))),
        "bpe": lambda: bpe_tokenizer(tmp_path),
    }[kind]()
    _, folder = written(tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = PLAIN + PLAIN
    assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert theirs.decode(tokenizer.encode(text).tolist()) == text
    strange = "a\u0416b\u0416\u0416"  # unknown to char, twice in a row
    assert theirs(strange)["input_ids"] == tokenizer.encode(strange).tolist()
