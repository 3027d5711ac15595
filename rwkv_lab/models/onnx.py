"""One step of a recurrent model as an ONNX file: token and state in, logits and state out."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from rwkv_lab.config.errors import UserError
from rwkv_lab.models.blocks.wkv_mix import WKVMix, WKVState
from rwkv_lab.models.lm import LM
from rwkv_lab.models.state import BlockState, ShiftState, State
from rwkv_lab.ops.reference import NO_HISTORY

OPSET = 18
INPUTS = ("token", "shift", "sums")
OUTPUTS = ("logits", "next_shift", "next_sums")


class Step(nn.Module):
    """``LM.advance`` for one token of one text, with tensors alone in its signature."""

    def __init__(self, model: LM):
        super().__init__()
        self.model = model

    def forward(self, token: Tensor, shift: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """token [1], last inputs [L,2,C] of time and channel mix, sums [L,3,C] -> logits [V], and the state after."""
        blocks = [
            BlockState(WKVState(last[:1], total.unsqueeze(0)), ShiftState(last[1:]))
            for last, total in zip(shift.unbind(0), sums.unbind(0), strict=True)
        ]
        logits, state = self.model.advance(token.unsqueeze(0), State(blocks, None, None, 1))
        shift = torch.stack([torch.cat((block.att[0], block.ffn[0])) for block in state.blocks])
        return logits[0, 0], shift, torch.stack([block.att[1][0] for block in state.blocks])


def first_state(model: LM) -> tuple[Tensor, Tensor]:
    """Return shift [L,2,C] and sums [L,3,C] before the first token: zeros, but for the sums' scale in row 2."""
    L, C = model.config.n_layer, model.config.n_embd
    shift, sums = torch.zeros(L, 2, C), torch.zeros(L, 3, C)
    sums[:, 2] = NO_HISTORY
    return shift, sums


@contextmanager
def _plain(mixes: list[WKVMix]) -> Iterator[None]:
    """Compute the scan in plain torch, which can be written down, and not by the kernel; keep the exporter quiet."""
    before, logger = [mix.backend for mix in mixes], logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # it warns of every package of torch's that is not installed
        for mix in mixes:
            mix.backend = "reference"
        yield
    finally:
        logger.setLevel(level)
        for mix, backend in zip(mixes, before, strict=True):
            mix.backend = backend


def save(model: LM, file: Path) -> None:
    """Write one step of ``model`` in float32 to ``file``, in operators of ONNX opset ``OPSET``.

    Raises UserError for a model whose blocks are not WKV mix and channel mix, or with head-QK.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("--to onnx needs the package onnxscript: pip install 'rwkv_lab[onnx]'") from None
    mixes = [block.att for block in model.blocks if isinstance(block.att, WKVMix)]
    if model.head_qk is not None or model.positions is not None or len(mixes) < len(model.blocks):
        raise UserError(
            f"only rwkv_v2, rwkv_v3 and rwkv_v4 without head-QK, ffn_pre and positions_2d can be written to ONNX: this "
            f"{model.config.name} has another state"
        )
    step = Step(model.float()).eval()
    with torch.no_grad(), warnings.catch_warnings(action="ignore"), _plain(mixes):
        program = torch.onnx.export(
            step,
            (torch.zeros(1, dtype=torch.long), *first_state(model)),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            verbose=False,
        )
    assert program is not None
    program.save(str(file))
