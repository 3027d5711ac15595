"""The native step gives the numbers of the torch path, for every model it serves."""

import copy

import pytest
import torch

from rwkv_lab.config.registry import members
from rwkv_lab.inference import decode
from rwkv_lab.inference.recurrent import RecurrentModel
from rwkv_lab.inference.sampling import generate
from rwkv_lab.models.blocks.channel_mix import ChannelMix, GeGLU
from tests.models.contract import moved, tokens
from tests.models.test_recurrent import RECURRENT, TRICKS

ERROR = {"fp32": 1e-5, "bf16": 2e-2, "int8": 1e-4}  # int8: against the same rounded matrices


def steps(recurrent, idx, state=None):
    found = []
    for token in idx.unbind(1):
        logits, state = recurrent.step(token, state)
        found.append(logits)
    return torch.stack(found, 1), state


def portable(model):
    recurrent = RecurrentModel(model)
    recurrent._portable = True
    return recurrent


def distance(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.fixture(autouse=True)
def kernel():
    if not decode.applies(moved(RECURRENT[0]).float()):
        pytest.skip("no compiler")


@pytest.mark.parametrize("fields", TRICKS, ids=str)
@pytest.mark.parametrize("name", RECURRENT)
def test_native_step_equals_torch(name, fields):
    """Also past ctx_len, and from the state of one path into the other."""
    model = moved(name, **fields).float()
    idx = tokens(1, 20)
    expected = model(idx)
    for kind in decode.KINDS:
        recurrent = RecurrentModel(model, kind)
        if kind == "int8":
            rounded = copy.deepcopy(model)
            decode.round_to_int8(rounded)
            expected = rounded(idx)
        found, _ = steps(recurrent, idx)
        assert recurrent._decoder is not None
        assert distance(found, expected) < ERROR[kind]
    native, plain = RecurrentModel(model), portable(model)
    first, state = steps(plain, idx[:, :7])
    second, state = steps(native, idx[:, 7:14], state)
    third, state = plain.prefill(idx[:, 14:], state)
    assert distance(torch.cat((first, second, third), 1), model(idx)) < 1e-5
    (_, mine), (_, theirs) = native.step(idx[:, 0], state), plain.step(idx[:, 0], state)
    for packed, listed in zip(mine.blocks, theirs.blocks, strict=True):
        torch.testing.assert_close(packed, listed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", decode.KINDS)
def test_threads_and_widths(kind):
    """The same bits for any number of threads; widths that fill vectors, and such that do not."""
    for width in (64, 200):
        model = moved("rwkv_v4", n_embd=width, n_layer=1).float()
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            alone = steps(RecurrentModel(model, kind), tokens(1, 3))[0]
            torch.set_num_threads(2)
            assert torch.equal(steps(RecurrentModel(model, kind), tokens(1, 3))[0], alone)
        finally:
            torch.set_num_threads(before)


def test_changed_weights_are_read_again():
    model = moved("rwkv_v4").float()
    recurrent, token = RecurrentModel(model), tokens(1, 1)[:, 0]
    recurrent.step(token)
    with torch.no_grad():
        model.blocks[0].att.key.weight.mul_(1.5)
    torch.testing.assert_close(recurrent.step(token)[0], portable(model).step(token)[0], rtol=1e-4, atol=1e-4)


def test_a_state_is_not_changed_by_the_step_after_it():
    model = moved("rwkv_v4").float()
    recurrent, idx = RecurrentModel(model), tokens(1, 4)
    _, state = steps(recurrent, idx[:, :3])
    once = recurrent.step(idx[:, 3], state)[0]
    torch.testing.assert_close(recurrent.step(idx[:, 3], state)[0], once, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in members("model") if name not in RECURRENT])
def test_other_models_take_the_torch_path(name):
    assert not decode.applies(moved(name).float())


@pytest.mark.parametrize("change", ["float64", "reference", "another sublayer", "subclass"])
def test_what_the_kernel_does_not_know_takes_the_torch_path(change):
    model = moved("rwkv_v3")
    if change != "float64":
        model.float()
    if change == "reference":
        for block in model.blocks:
            block.att.backend = "reference"
    if change == "another sublayer":
        model.blocks[1].ffn = GeGLU(12, 24, "half")
    if change == "subclass":
        model.blocks[1].ffn = type("Other", (ChannelMix,), {})(12, "learned")
    assert not decode.applies(model)


@pytest.mark.parametrize("name", members("model"))
def test_logits_of_the_last_position_alone(name):
    model = moved(name, head_qk_dim=5)
    idx = tokens(2, 6)
    recurrent = RecurrentModel(model)
    whole, state = recurrent.prefill(idx)
    last, same = recurrent.read(idx)
    torch.testing.assert_close(last, whole[:, -1])
    torch.testing.assert_close(recurrent.step(idx[:, 0], same)[0], recurrent.step(idx[:, 0], state)[0])


def test_generation_is_the_same_text():
    model = moved("rwkv_v4", n_embd=64).float()
    plain = copy.deepcopy(model)
    for block in plain.blocks:
        block.att.backend = "reference"
    drawn = [
        generate(each, [1, 2, 3], 20, torch.Generator().manual_seed(3), temperature=0.7) for each in (model, plain)
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("kind", ["int8", "bf16"])
def test_token_outside_the_vocabulary(kind):
    with pytest.raises(RuntimeError, match="vocabulary"):
        RecurrentModel(moved("rwkv_v4").float(), kind).step(torch.tensor([11]))


def test_rows_in_int8():
    weight = torch.tensor([[1.0, -127.0, 0.4], [0.0, 0.0, 0.0]])
    whole, scales = decode.quantised(weight)
    assert whole.tolist() == [[1, -127, 0], [0, 0, 0]]
    assert scales.flatten().tolist() == [1.0, 0.0]
