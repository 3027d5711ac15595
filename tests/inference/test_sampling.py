"""Which tokens each filter keeps, and generation from every architecture."""

import pytest
import torch
from safetensors.torch import save_file

from rwkv_lab import models
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.registry import names
from rwkv_lab.inference.sampling import filter_logits, generate

P = [0.5, 0.25, 0.15, 0.07, 0.03]


def kept(**filters):
    p = filter_logits(torch.tensor([P]).log(), **filters)[0]
    assert p.sum().item() == pytest.approx(1.0)
    return [i for i, value in enumerate(p.tolist()) if value > 0]


@pytest.mark.parametrize(
    ("filters", "tokens"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.0}, [0]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 0.8}, [0, 1, 2]),
        ({"top_p": 0.6, "top_p_x": 0.05}, [0, 1, 2, 3]),  # the top-p set {0, 1} and every p > 0.05
        ({"top_p_x": 0.1}, [0, 1, 2, 3, 4]),
        ({"top_a": 0.2}, [0, 1, 2, 3]),  # 0.2 * 0.25 = 0.05
        ({"top_a": 0.2, "top_a_power": 1.0}, [0, 1, 2]),  # 0.2 * 0.5 = 0.1
        ({"top_a": 1.0, "top_a_power": 0.0}, [0]),
        ({"top_k": 3, "top_a": 0.2, "top_p": 0.6}, [0, 1]),
        ({"temperature": 0.0}, [0]),
    ],
    ids=str,
)
def test_filters(filters, tokens):
    assert kept(**filters) == tokens


def test_temperature_reshapes_what_is_kept():
    p = filter_logits(torch.tensor([P]).log(), temperature=0.5, top_k=2)[0]
    torch.testing.assert_close(p, torch.tensor([0.25, 0.0625, 0.0, 0.0, 0.0]) / 0.3125)


@pytest.mark.parametrize(
    "filters",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 1.5},
        {"top_a": -0.1},
        {"top_p_x": 2},
    ],
)
def test_filters_out_of_range(filters):
    with pytest.raises(UserError, match=next(iter(filters))):
        kept(**filters)


@pytest.mark.parametrize("V", [5, 300])
@pytest.mark.parametrize("sharpness", [0.1, 4.0])
@pytest.mark.parametrize(
    "filters", [{"top_p": 0.9}, {"top_k": 7}, {"top_p": 0.5, "top_a": 0.2}, {"top_p": 1.0}], ids=str
)
def test_filters_against_a_full_sort(V, sharpness, filters):
    logits = sharpness * torch.randn(3, V, generator=torch.Generator().manual_seed(V), dtype=torch.float64)
    got = filter_logits(logits, **filters) > 0
    for p, row in zip(logits.softmax(-1), got, strict=True):
        order = p.argsort(descending=True)
        before = p[order].cumsum(0) - p[order]
        want = (p >= filters.get("top_a", 0.0) * p.max() ** 2) & (p >= p[order][min(filters.get("top_k", V), V) - 1])
        nucleus = set(order[before < filters["top_p"]].tolist()) if "top_p" in filters else set(range(V))
        assert row.nonzero().flatten().tolist() == [i for i in range(V) if want[i] and i in nucleus]


@pytest.mark.parametrize("name", names("model"))
def test_generation(name):
    """Past ctx_len too; greedy generation takes the model's own most probable token each time."""
    model = models.build(name, vocab_size=13, n_layer=2, n_embd=16, ctx_len=6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    prompt = [3, 1, 4]
    drawn = generate(model, prompt, 12, torch.Generator().manual_seed(5), top_p=0.9)
    assert drawn == generate(model, prompt, 12, torch.Generator().manual_seed(5), top_p=0.9)
    assert len(drawn) == 12
    assert all(0 <= token < 13 for token in drawn)
    greedy = generate(model, prompt, 12, temperature=0.0)
    tokens = prompt + greedy
    start = 0
    for i in range(3, 15):
        if not model.recurrent and i - start > 6:  # a window of six is full: its later half begins the next
            start = i - 4
        assert int(model(torch.tensor([tokens[start:i]]))[0, -1].argmax()) == tokens[i]


@pytest.mark.parametrize("prompt", [[], [13], [-1]])
def test_prompts_that_cannot_be_read(prompt):
    model = models.build("rwkv_v4", vocab_size=13, n_layer=1, n_embd=8, ctx_len=6)
    with pytest.raises(UserError, match="the prompt"):
        generate(model, prompt, 3)


def test_command_line(tmp_path, capsys):
    from rwkv_lab.cli import generate as command
    from rwkv_lab.data.tokenizers.char import CharTokenizer

    tokenizer = CharTokenizer("\nab")
    models.save(models.build("rwkv_v4", vocab_size=4, n_layer=1, n_embd=8, ctx_len=6), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="give --tokenizer FILE"):
        command.main([str(tmp_path), "ab"])
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    printed = []
    for _ in range(2):
        command.main([str(tmp_path), "ab", "--length", "20", "--top-p", "0.9"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].startswith("ab")
    assert len(printed[0]) == 2 + 20 + 1


@pytest.mark.parametrize("description", [None, "", "[]", '{"name": "rwkv_v4"}'])
def test_weights_that_describe_no_model(tmp_path, description):
    metadata = None if description is None else {"rwkv_lab.model": description}
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors", metadata=metadata)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        models.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk, not a safetensors file"])
def test_broken_weights(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    for read in (models.load, lambda path: models.build("rwkv_v4", vocab_size=3, init_from=str(path))):
        with pytest.raises(UserError, match=r"not a readable \.safetensors file"):
            read(tmp_path)
