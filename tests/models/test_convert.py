"""Checkpoints of the original implementation, weights on disk, and what must not be loaded."""

import dataclasses
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch

from rwkv_lab import models
from rwkv_lab.cli import convert
from rwkv_lab.cli.convert import load_original, to_original
from rwkv_lab.config.errors import UserError
from rwkv_lab.models.weights import read_checkpoint

SMALL = {"n_layer": 3, "n_embd": 16, "ctx_len": 12}
TYPES = [
    ("rwkv_v1", "v1", "RWKV", {"head_qk_dim": 8, "n_ffn": 7, "n_attn": 8}),
    ("rwkv_v1", "v1", "RWKV", {"tiny_attention": 6, "time_out": False}),
    ("mha_rotary", "v1", "MHA_rotary", {"n_ffn": 5}),
    ("mha_shift", "v1", "MHA_shift", {"head_qk_dim": 8}),
    ("mha_pro", "v1", "MHA_pro", {"n_head": 2}),
    ("rwkv_v2", "v2", "RWKV", {"head_qk_dim": 8}),
    ("rwkv_v2", "v2", "RWKV-ffnPre", {}),
    ("rwkv_v3", "v3", "RWKV", {}),
    ("rwkv_v3", "v3", "RWKV-ffnPre", {"head_qk_dim": 8}),
    ("rwkv_v4", "v4", "RWKV", {"head_qk_dim": 8}),
    ("rwkv_v4", "v4", "RWKV-ffnPre", {}),
]


def moved(name, model_type="RWKV", vocab_size=19, **fields):
    if model_type.endswith("-ffnPre"):
        fields["ffn_pre"] = True
    model = models.build(name, vocab_size=vocab_size, **SMALL, **fields)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def widths(config):
    """The sizes a checkpoint shows where the configuration leaves them to n_embd."""
    if not hasattr(config, "n_head"):
        return {}
    return {"n_head": config.heads, "n_attn": config.attention_width, "n_ffn": config.ffn_width}


@pytest.mark.parametrize(("name", "version", "model_type", "fields"), TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_round_trip(name, version, model_type, fields, dtype):
    model = moved(name, model_type, **fields).to(dtype)
    theirs = to_original(model)
    sizes = {"ctx_len": 12} | ({"n_head": model.config.heads} if version == "v1" else {})
    again = load_original(theirs | {"blocks.0.att.mask": torch.ones(3)}, version, model_type, **sizes)
    assert again.config == dataclasses.replace(model.config, **widths(model.config))
    back = to_original(again)
    assert list(back) == list(theirs)
    assert all(torch.equal(back[key], theirs[key]) and back[key].dtype == dtype for key in theirs)
    if dtype != torch.bfloat16:
        idx = torch.randint(0, 19, (2, 9), generator=torch.Generator().manual_seed(3))
        assert torch.equal(again(idx), model(idx))


def test_original_names_and_shapes():
    theirs = {key: tuple(value.shape) for key, value in to_original(moved("rwkv_v2", "RWKV-ffnPre")).items()}
    assert theirs["blocks.0.ffnPre.time_mix"] == theirs["blocks.1.att.time_mix"] == (1, 1, 16)
    assert theirs["blocks.1.att.time_decay"] == theirs["blocks.2.att.time_first"] == (16, 1)
    assert theirs["head_q.weight"] == (256, 16)
    assert not any("blocks.0.att." in key for key in theirs)
    assert tuple(to_original(moved("rwkv_v4"))["blocks.1.att.time_decay"].shape) == (16,)
    assert tuple(to_original(moved("mha_pro"))["blocks.1.attn.head_mix.weight"].shape) == (4, 4, 1, 1)


def test_v4_trains_with_l2_wrap_unless_told_otherwise():
    theirs = to_original(moved("rwkv_v4"))
    assert load_original(theirs, "v4").config.l2_wrap
    assert not load_original(theirs, "v4", l2_wrap=False).config.l2_wrap
    assert not load_original(to_original(moved("rwkv_v3")), "v3").config.l2_wrap


def test_gradients_under_original_names():
    model = moved("rwkv_v3")
    with pytest.raises(UserError, match="no gradients yet"):
        to_original(model, grads=True)
    idx = torch.arange(12).unsqueeze(0)
    model.loss(idx, idx).backward()
    grads = to_original(model, grads=True)
    assert torch.equal(grads["blocks.1.att.time_decay"].flatten(), model.blocks[1].att.time_decay.grad)


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        ({}, ("v5", "RWKV"), "no v5 model"),
        ({}, ("v1", "RWKV-ffnPre"), "no v1 model of type 'RWKV-ffnPre'"),
        ({}, ("v1", "RWKV"), "no tok_emb.weight"),
        ({"emb.bias": torch.ones(2)}, ("v4", "RWKV"), "has emb.bias, which rwkv_v4 lacks"),
        ({"ln_out.bias": torch.ones(2)}, ("v4", "RWKV"), r"ln_out.bias is \[2\]"),
        ({"ln_out.bias": None}, ("v4", "RWKV"), "the checkpoint has no ln_out.bias"),
    ],
)
def test_checkpoints_that_do_not_fit(change, arguments, words):
    theirs = {key: value for key, value in (to_original(moved("rwkv_v4")) | change).items() if value is not None}
    with pytest.raises(UserError, match=words):
        load_original(theirs, *arguments)


def test_sizes_that_contradict_or_lack():
    theirs = to_original(moved("mha_rotary"))
    with pytest.raises(UserError, match="n_head must be given"):
        load_original(theirs, "v1", "MHA_rotary")
    with pytest.raises(UserError, match="n_layer is given as 7, but the tensors show 3"):
        load_original(theirs, "v1", "MHA_rotary", n_head=4, n_layer=7)
    with pytest.raises(UserError, match="n_loyer is not a size"):
        load_original(theirs, "v1", "MHA_rotary", n_head=4, n_loyer=7)


def test_command_line_there_and_back(tmp_path, capsys):
    model = moved("rwkv_v4", head_qk_dim=8)
    models.save(model, tmp_path / "model.safetensors")
    convert.main([str(tmp_path), str(tmp_path / "out.pth"), "--to", "original"])
    theirs = torch.load(tmp_path / "out.pth", weights_only=True)
    assert torch.equal(theirs["head_q.weight"], model.head_qk.q.weight)
    back = tmp_path / "back.safetensors"
    convert.main([str(tmp_path / "out.pth"), str(back), "--from", "original", "--ctx-len", "12"])
    again = models.load(back)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("arguments", [("out.pth", "--to", "original"), ("out.safetensors", "--from", "original")])
def test_a_place_that_cannot_be_written(arguments, tmp_path):
    model = moved("rwkv_v4")
    models.save(model, tmp_path / "model.safetensors")
    torch.save(to_original(model), tmp_path / "original.pth")
    source = tmp_path if "--to" in arguments else tmp_path / "original.pth"
    with pytest.raises(UserError, match=rf"/proc/{arguments[0]} cannot be written: No such file or directory$"):
        convert.main([str(source), f"/proc/{arguments[0]}", *arguments[1:]])


@pytest.mark.parametrize(
    "arguments",
    [("nowhere.pth", "x.safetensors", "--from", "original"), ("nowhere", "x.pth", "--to", "original")],
)
def test_command_line_mistakes_are_one_line(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rwkv_lab.convert", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1


class Command:
    """Unpickling it runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    "write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=4))]
)
def test_a_malicious_checkpoint_runs_nothing(tmp_path, write):
    marker, path = tmp_path / "ran", tmp_path / "bad.pth"
    write({"emb.weight": Command(marker)}, path)
    with warnings.catch_warnings(action="error"), pytest.raises(UserError, match="not a checkpoint of plain tensors"):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a checkpoint"):
        read_checkpoint(path)


def test_a_saved_model_loads_by_itself(tmp_path):
    model = moved("mha_pro", n_head=2)
    models.save(model, tmp_path / "m.safetensors")
    again = models.load(tmp_path / "m.safetensors")
    idx = torch.arange(9).unsqueeze(0)
    assert again.config == model.config
    assert torch.equal(again(idx), model(idx))
