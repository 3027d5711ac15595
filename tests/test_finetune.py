"""The recipe that tunes a model of another program on a text, in one command."""

import torch

from rwkv_lab.cli import convert
from rwkv_lab.data.tokenizers.bpe import read_bpe, train
from rwkv_lab.models.opening import open_model
from rwkv_lab.models.weights import read_ours
from rwkv_lab.training.evaluate import evaluate_text
from tests.in_process import make_here
from tests.models.test_convert import moved


def test_an_original_checkpoint_on_a_text_of_ones_own(tmp_path, monkeypatch):
    here = make_here(tmp_path, monkeypatch)
    train(tmp_path / "bpe.json", 280, [here.text])
    tokenizer = read_bpe(str(tmp_path / "bpe.json"))
    source = moved("rwkv_v4", vocab_size=tokenizer.vocab_size)
    torch.save(convert.to_original(source), tmp_path / "x.pth")
    command = [
        "experiments=finetune",
        f"model.init_from={tmp_path / 'x.pth'}",
        f"data.path={here.text}",
        "tokenizer=bpe",
        f"tokenizer.path={tmp_path / 'bpe.json'}",
        "model.n_layer=3",
        "model.ctx_len=40",  # more than the checkpoint's 12
    ]
    assert here.run(*command, study="finetune") == 0
    run = here.loaded("finetune")
    config = run.config
    assert (config["schedule"]["lr_init"], config["optimizer"]["betas"]) == (1e-5, [0.9, 0.999])
    before, steps = read_ours(tmp_path / "x.pth"), run.manifest["steps"]
    for name, value in read_ours(run.path / "model.safetensors").items():
        assert 0 < (value - before[name]).abs().max() < 2 * steps * 1e-5, name
    convert.main([str(run.path), str(tmp_path / "tuned.pth")])
    tuned = open_model(tmp_path / "tuned.pth").model
    losses = [evaluate_text(model, tokenizer, here.text, "cpu").loss for model in (source, tuned)]
    assert losses[1] < losses[0]
