"""A model by whatever name it has: runs, originals, wrapped checkpoints, Hugging Face folders."""

import json

import pytest
import torch
from safetensors.torch import save_file

from rwkv_lab import models
from rwkv_lab.cli import convert
from rwkv_lab.config.errors import UserError
from rwkv_lab.data.tokenizers.byte import ByteTokenizer
from rwkv_lab.data.tokenizers.char import CharTokenizer
from rwkv_lab.models import huggingface
from rwkv_lab.models.opening import absorb_norm
from rwkv_lab.models.rwkv_lm_format import to_original
from tests.in_process import make_here
from tests.models.test_convert import SMALL, TYPES, moved

TEXT = "abcdefghijklmnopqr"  # with the unknown one 19 tokens, as the models of moved()


def equal(one, other):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize(("name", "version", "model_type", "fields"), TYPES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_original_is_known_by_its_tensors(name, version, model_type, fields, suffix, tmp_path):
    model, file = moved(name, model_type, **fields), tmp_path / f"x{suffix}"
    (torch.save if suffix == ".pth" else save_file)(to_original(model), file)
    if name in ("mha_rotary", "mha_shift"):
        with pytest.raises(UserError, match="--n-head"):
            models.open_model(file)
        found = models.open_model(file, version="v1", model_type=model_type, n_head=model.config.heads, ctx_len=12)
    else:
        sizes = {} if version != "v1" else {"n_head": model.config.heads, "ctx_len": 12}
        found = models.open_model(file, **sizes)
    assert found.tokenizer is None
    assert found.model.config.name == name
    assert equal(found.model, model)
    if version == "v1":
        return
    started = models.build(name, vocab_size=19, **(SMALL | fields | _ffn_pre(model)), init_from=str(file))
    assert equal(started, model)


def _ffn_pre(model):
    return {"ffn_pre": True} if model.config.ffn_pre else {}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {f"module.{name}": value for name, value in tensors.items()},
        lambda tensors: {"state_dict": {f"_forward_module.model.{name}": value for name, value in tensors.items()}},
        lambda tensors: {"module": tensors, "step": 7, "args": {"lr": 0.1}},
    ],
    ids=["module.", "state_dict of _forward_module.model.", "module beside numbers"],
)
def test_checkpoints_wrapped_by_trainers(wrap, tmp_path):
    model = moved("rwkv_v4")
    torch.save(wrap(to_original(model)), tmp_path / "x.pth")
    assert equal(models.open_model(tmp_path / "x.pth").model, model)
    assert equal(models.build("rwkv_v4", vocab_size=19, **SMALL, init_from=str(tmp_path / "x.pth")), model)


def test_a_run_comes_with_its_tokenizer(tmp_path):
    models.save(moved("rwkv_v4"), tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text(CharTokenizer(TEXT).to_json())
    assert models.open_model(tmp_path).tokenizer == CharTokenizer(TEXT)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(CharTokenizer("xyz").hugging_face()))
    assert models.open_model(tmp_path, other).tokenizer.encode("zx").tolist() == [2, 0]
    other.write_text(ByteTokenizer().to_json())
    with pytest.raises(UserError, match="256 tokens"):
        models.open_model(tmp_path, other)
    for content in ("", "{}", '{"model": {"type": "none"}}', "[1]"):
        other.write_text(content)
        with pytest.raises(UserError, match=r"other\.json"):
            models.open_model(tmp_path, other)


@pytest.mark.parametrize("out", ["y.safetensors", "y.pth", "y"])
def test_weights_that_are_not_numbers_are_named(tmp_path, out):
    theirs = to_original(moved("rwkv_v4"))
    theirs["blocks.1.att.key.weight"][2, 3] = torch.nan
    torch.save(theirs, tmp_path / "x.pth")
    to = ["--to", "hf"] if out == "y" else []
    with pytest.raises(UserError, match=r"NaN in blocks\.1\.att\.key\.weight"):
        convert.main([str(tmp_path / "x.pth"), str(tmp_path / out), *to])
    assert not (tmp_path / out).exists()
    with pytest.raises(UserError, match=r"blocks\.1\.att\.key\.weight"):
        models.build("rwkv_v4", vocab_size=19, **SMALL, init_from=str(tmp_path / "x.pth"))


def test_the_name_of_the_file_decides_what_is_written(tmp_path):
    model = moved("rwkv_v4")
    source = tmp_path / "x.pth"
    torch.save({f"module.{name}": value for name, value in to_original(model).items()}, source)
    convert.main([str(source), str(tmp_path / "y.pth")])
    written = torch.load(tmp_path / "y.pth", weights_only=True)
    assert written.keys() == to_original(model).keys()
    models.save(model, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="other files"):
        convert.main([str(tmp_path), str(tmp_path), "--to", "hf"])
    for wrong in (["y"], ["y.pth", "--to", "rwkv_lab"], ["y.safetensors", "--to", "original"], ["y.pth", "--to", "hf"]):
        with pytest.raises(UserError, match=wrong[0]):
            convert.main([str(source), str(tmp_path / wrong[0]), *wrong[1:]])


def test_names_of_other_models(tmp_path):
    torch.save({"transformer.wte.weight": torch.ones(2, 2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth: its tensors are not those of a model known here"):
        models.open_model(tmp_path / "x.pth")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="model_type=llama"):
        models.open_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["rwkv_v2", "rwkv_v3", "rwkv_v4"])
def test_the_norm_of_the_embedding_absorbed(name, dtype, tmp_path):
    model = moved(name, norm="pre").to(dtype)
    models.save(model, tmp_path / "model.safetensors")
    convert.main([str(tmp_path), str(tmp_path / "y.safetensors"), "--absorb-ln"])
    absorbed = models.open_model(tmp_path / "y.safetensors").model
    assert absorbed.blocks[0].ln0 is None
    idx = torch.randint(0, 19, (2, 9), generator=torch.Generator().manual_seed(3))
    assert torch.equal(absorb_norm(model)(idx), model(idx))
    assert torch.equal(absorbed.emb.weight, model.blocks[0].ln0(model.emb.weight))
    torch.testing.assert_close(
        absorbed(idx), model(idx)
    )  # where a file puts a tensor changes a matrix product's last bit
    with pytest.raises(UserError, match="no norm"):
        convert.main([str(tmp_path / "y.safetensors"), str(tmp_path / "z.safetensors"), "--absorb-ln"])
    with pytest.raises(UserError, match="--absorb-ln"):
        convert.main([str(tmp_path), str(tmp_path / "z.pth"), "--absorb-ln"])


def test_the_norm_of_a_post_norm_model_stays(tmp_path):
    models.save(moved("rwkv_v4", norm="post"), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="post-norm"):
        convert.main([str(tmp_path), str(tmp_path / "y.safetensors"), "--absorb-ln"])


def test_a_folder_written_for_transformers_is_read_again(tmp_path):
    model = moved("rwkv_v4")
    huggingface.save(model, CharTokenizer(TEXT), tmp_path / "hf")
    found = models.open_model(tmp_path / "hf")
    assert equal(found.model, model)
    assert found.model.config.ctx_len == SMALL["ctx_len"]
    assert found.tokenizer.encode("ca?").tolist() == [2, 0, 18]
    assert equal(models.build("rwkv_v4", vocab_size=19, **SMALL, init_from=str(tmp_path / "hf")), model)


def test_shards_and_tied_heads_of_a_folder(tmp_path):
    model = moved("rwkv_v4")
    with torch.no_grad():
        model.head.weight.copy_(model.emb.weight)
    huggingface.save(model, None, tmp_path)
    tensors = huggingface.to_hugging_face(model)
    del tensors["head.weight"]
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert equal(models.open_model(tmp_path).model, model)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors"):
        models.open_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("rwkv_v3", {}),
        ("mha_rotary", {}),
        ("rwkv_v4", {"head_qk_dim": 8}),
        ("rwkv_v4", {"ffn_pre": True}),
        ("rwkv_v4", {"norm": "post"}),
        ("rwkv_v4", {"emb_norm": False}),
        ("rwkv_v4", {"token_shift": "half"}),
    ],
    ids=str,
)
def test_what_transformers_has_no_class_for(name, fields, tmp_path):
    models.save(models.build(name, vocab_size=19, **SMALL, **fields), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="rwkv_v4 without tricks"):
        convert.main([str(tmp_path), str(tmp_path / "hf"), "--to", "hf"])
    assert not (tmp_path / "hf").exists()


def test_a_run_that_starts_from_an_original(tmp_path, monkeypatch):
    here = make_here(tmp_path, monkeypatch)
    assert here.run("trainer.steps=2", study="first") == 0
    first = here.folder("first")
    for out, to in (("x.pth", []), ("hf", ["--to", "hf"])):
        convert.main([str(first), str(tmp_path / out), *to])
        assert here.run("trainer.steps=2", f"model.init_from={tmp_path / out}", study="next") == 0
        assert here.loaded("next").status == "complete"
