"""What is written for onnxruntime steps on from its own state as the model does."""

import numpy as np
import pytest
import torch

from rwkv_lab import models
from rwkv_lab.cli import convert
from rwkv_lab.config.errors import UserError
from rwkv_lab.inference.recurrent import RecurrentModel
from rwkv_lab.models.onnx import first_state
from tests.models.test_convert import SMALL, moved


@pytest.mark.slow
def test_two_hundred_steps(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = moved("rwkv_v4")
    models.save(model, tmp_path / "model.safetensors")
    convert.main([str(tmp_path), str(tmp_path / "x.onnx")])
    session = runtime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    recurrent, state = RecurrentModel(model), None
    shift, sums = (value.numpy() for value in first_state(model))
    token, largest = 3, 0.0
    for _ in range(200):
        want, state = recurrent.step(torch.tensor([token]), state)
        feed = {"token": np.array([token]), "shift": shift, "sums": sums}
        got, shift, sums = session.run(["logits", "next_shift", "next_sums"], feed)
        largest = max(largest, float(np.abs(got - want[0].numpy()).max()))
        token = int(want.argmax())
        assert int(got.argmax()) == token
    assert largest < 1e-5


@pytest.mark.parametrize(
    ("name", "fields"),
    [("mha_rotary", {}), ("rwkv_v1", {}), ("rwkv_v4", {"head_qk_dim": 8}), ("rwkv_v4", {"ffn_pre": True})],
    ids=str,
)
def test_other_states(name, fields, tmp_path):
    pytest.importorskip("onnxscript")
    models.save(models.build(name, vocab_size=19, **SMALL, **fields), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="ONNX"):
        convert.main([str(tmp_path), str(tmp_path / "x.onnx")])
    assert not (tmp_path / "x.onnx").exists()
