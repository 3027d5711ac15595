"""Numbers of the original implementation: logits, loss, gradients, token-by-token logits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from rwkv_lab.cli.convert import load_original, to_original
from rwkv_lab.inference.recurrent import RecurrentModel

SIZES = ("vocab_size", "ctx_len", "n_layer", "n_embd", "head_qk_dim", "n_head", "n_attn", "n_ffn")
CASES = ("v1_rwkv_t32", "v1_mha_rotary_t32", "v3_rwkv_hqk0_t32", "v4_rwkv_hqk0_t32")
BOUNDS = {torch.float64: 1e-6, torch.float32: 2e-4}


def read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["meta"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def require_equal(path: Path, dtype: torch.dtype) -> None:
    meta, want = read(path)
    weights = {key.removeprefix("param/"): value.to(dtype) for key, value in want.items() if key.startswith("param/")}
    sizes = {key: meta[key] for key in SIZES if key in meta}
    model = load_original(weights, meta["version"], meta["model_type"], l2_wrap=False, **sizes)

    def require(got: Tensor, key: str) -> None:
        torch.testing.assert_close(
            got.double(),
            want[key],
            rtol=0,
            atol=BOUNDS[dtype] * float(want[key].abs().max()),
            msg=lambda m: f"{key}: {m}",
        )

    outputs: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output[0]))
    require(model(want["idx"]), "logits")
    for i, output in enumerate(outputs):
        if f"block_out/{i}" in want:
            require(output, f"block_out/{i}")
    loss = model.loss(want["idx"], want["targets"])
    require(loss.reshape(1), "loss")
    loss.backward()
    grads = to_original(model, grads=True)
    flat = [grads[name].double().flatten() for name in meta["param_names"]]
    require(torch.stack([grad.norm() for grad in flat]), "grad_norm")
    require(torch.stack([grad @ torch.arange(len(grad)).double().cos() for grad in flat]), "grad_proj")
    for key in want:
        if key.startswith("grad/"):
            require(grads[key.removeprefix("grad/")][: len(want[key])], key)
    if meta["has_rnn"]:
        recurrent, state, steps = RecurrentModel(model), None, []
        for token in want["idx"].unbind(1):
            logits, state = recurrent.step(token, state)
            steps.append(logits)
        require(torch.stack(steps, dim=1), "rnn_logits")


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_reference_material_is_reproduced(material, case, dtype):
    require_equal(material / "parity" / f"{case}.safetensors", dtype)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("case", ["v4_rwkv_hqk0_t32", "v1_mha_rotary_t32"])
def test_the_cases_kept_here_are_reproduced(case, dtype):
    require_equal(Path(__file__).parent / "cases" / f"{case}.safetensors", dtype)
