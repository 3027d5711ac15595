"""The native step: one token through a model of WKV mixes by a kernel that reads every weight once, from the CPU.

A token costs one read of the weights, so they are stored for it: float32, bfloat16, or int8 with a scale per row.
"""

import functools
import mmap
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from rwkv_lab.models.blocks.channel_mix import ChannelMix
from rwkv_lab.models.blocks.wkv_mix import WKVMix, WKVState
from rwkv_lab.models.state import BlockState, ShiftState, State
from rwkv_lab.ops.reference import NO_HISTORY
from rwkv_lab.ops.scan import uses_kernel

if TYPE_CHECKING:
    from rwkv_lab.models.blocks.token_shift import TokenShift
    from rwkv_lab.models.lm import LM

KINDS = ("fp32", "bf16", "int8")  # numbered as in csrc/decode_cpu.h
PAD = 64  # multiple to which rows and vectors are filled up, as there
LARGEST = 127  # of int8
ROWS = 5  # of a layer's state: last input, a, b, p of the time mix, last input of the channel mix
PROBE_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "int8": 2e-2}


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 numbers [N,K] and float32 scales [N,1] whose product is nearest to ``weight`` [N,K], row by row."""
    scales = weight.float().abs().amax(dim=1, keepdim=True) / LARGEST
    return (weight.float() / scales.masked_fill(scales == 0, 1.0)).round().to(torch.int8), scales


@torch.no_grad()
def round_to_int8(model: "LM") -> None:
    """Replace the matrices of blocks and head by the values they have in int8, for any model."""
    for module in (*model.blocks.modules(), model.head):
        if isinstance(module, nn.Linear):
            whole, scales = quantised(module.weight)
            module.weight.copy_(whole * scales)


class PackedBlocks(Sequence[BlockState]):
    """The states of all blocks as views of one tensor [1,L,5,C]."""

    def __init__(self, packed: Tensor, model: "LM"):
        self.packed = packed
        self._blocks = model.blocks

    def __len__(self) -> int:
        return self.packed.shape[1]

    @overload
    def __getitem__(self, i: int) -> BlockState: ...

    @overload
    def __getitem__(self, i: slice) -> list[BlockState]: ...

    def __getitem__(self, i: int | slice) -> BlockState | list[BlockState]:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        rows = self.packed[:, i]
        last, sums, ffn_last = rows[:, 0], rows[:, 1:4], rows[:, 4]
        att = WKVState(last, sums) if isinstance(self._blocks[i].att, WKVMix) else ShiftState(last)
        return BlockState(att, ShiftState(ffn_last))


class Decoder:
    """The weights of a model as the kernel reads them."""

    def __init__(self, model: "LM", kind: str):
        """Store a copy of ``model``, which ``applies`` has approved."""
        self.model = model
        self.kind = kind
        self._watched = list(model.parameters())
        self._versions = [parameter._version for parameter in self._watched]
        store = _Store(kind)
        ln_out, config = model.ln_out, model.config
        head = store.vectors(ln_out.weight, ln_out.bias)
        store.matrix(model.head.weight)
        hidden = _ffns(model)[0].key.out_features
        plan = [config.n_embd, hidden, model.vocab_size, len(model.blocks), KINDS.index(kind)]
        plan += [int(config.norm == "pre"), head]
        for block in model.blocks:
            plan += store.block(block)
        self.store, self.plan = store.filled(), torch.tensor(plan)
        self.eps = ln_out.eps
        self.den_eps, self.k_max = _constants(model)

    @property
    def stale(self) -> bool:
        """Whether the model's weights were changed since they were stored."""
        return [parameter._version for parameter in self._watched] != self._versions

    def step(self, token: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Token [1] after ``state`` (None: the start) -> logits of the next token [1,V] and the new state."""
        packed = self._start() if state is None else _packed(state)
        logits, x, packed = torch.ops.rwkv_lab.decode_step(
            self.store, self.plan, self.model.emb.weight, token.long(), packed, self.eps, self.den_eps, self.k_max
        )
        history, position = (None, 1) if state is None else (state.head_qk, state.position + 1)
        if self.model.head_qk is not None:
            wide, history = self.model.head_qk(logits.unsqueeze(1), x.unsqueeze(1), token.unsqueeze(1), history)
            logits = wide[:, 0]
        return logits, State(PackedBlocks(packed, self.model), history, None, position)

    def _start(self) -> Tensor:
        state = torch.zeros(1, len(self.model.blocks), ROWS, self.model.config.n_embd)
        state[:, :, 3] = NO_HISTORY
        return state


def _packed(state: State) -> Tensor:
    if isinstance(state.blocks, PackedBlocks):
        return state.blocks.packed
    rows = []
    for att, ffn in state.blocks:
        sums = att[1] if isinstance(att, WKVState) else torch.zeros_like(att[0]).unsqueeze(1).expand(-1, 3, -1)
        rows.append(torch.cat([part.float() for part in (att[0].unsqueeze(1), sums, ffn[0].unsqueeze(1))], dim=1))
    return torch.stack(rows, dim=1)


class _Store:
    """Pieces of memory one after the other, each at a multiple of 64 bytes."""

    def __init__(self, kind: str):
        self.kind = kind
        self.size = 0
        self.pieces: list[tuple[int, Callable[[], Tensor]]] = []

    def vectors(self, *rows: Tensor) -> int:
        """Add vectors [C]; return their offset."""
        wide = _ceil(rows[0].numel())
        return self._add(4 * wide * len(rows), lambda: torch.stack([_filled(row.float(), wide) for row in rows]))

    def matrix(self, weight: Tensor) -> int:
        """Add a matrix [N,K] with its scales [N]; return its offset."""
        N, K = weight.shape
        offset = self._add(4 * _ceil(N), lambda: _filled(quantised(weight)[1][:, 0], _ceil(N)))
        self._add(N * _ceil(K) * {"fp32": 4, "bf16": 2, "int8": 1}[self.kind], lambda: self._rows(weight))
        return offset

    def _rows(self, weight: Tensor) -> Tensor:
        wide = _ceil(weight.shape[1])
        if self.kind == "int8":
            return _filled(quantised(weight)[0], wide)
        if self.kind == "fp32":
            return _filled(weight.float(), wide)
        # Of 32 columns, i and i + 16 are the halves of one word.
        return _filled(weight.bfloat16(), wide).unflatten(1, (-1, 2, 16)).transpose(2, 3)

    def block(self, block: Any) -> list[int]:
        """Add a block; return its part of the plan."""
        norms = [-1 if ln is None else self.vectors(ln.weight, ln.bias) for ln in (block.ln0, block.ln1, block.ln2)]
        att, ffn = block.att, block.ffn
        if isinstance(att, WKVMix):
            vectors = self.vectors(*_shares(att.shift, att), -torch.exp(att.time_decay.float()), att.time_first)
            matrices = [self.matrix(part.weight) for part in (att.key, att.value, att.receptance, att.output)]
        else:
            vectors = self.vectors(*_shares(att.shift, att))
            matrices = [self.matrix(part.weight) for part in (att.key, att.value, att.receptance)] + [0]
        plan = [int(not isinstance(att, WKVMix)), *norms, vectors, *matrices, self.vectors(*_shares(ffn.shift, ffn))]
        return plan + [self.matrix(part.weight) for part in (ffn.key, ffn.value, ffn.receptance)]

    def _add(self, size: int, content: Callable[[], Tensor]) -> int:
        offset = self.size
        self.pieces.append((offset, content))
        self.size = -(-(offset + size) // PAD) * PAD
        return offset

    @torch.no_grad()
    def filled(self) -> Tensor:
        """Return the store as bytes, in huge pages where the system has them: a token walks through all of it."""
        memory = mmap.mmap(-1, max(self.size, 1))
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        store = torch.frombuffer(memory, dtype=torch.uint8)
        for offset, content in self.pieces:
            part = content().contiguous().view(-1).view(torch.uint8)
            store[offset : offset + part.numel()] = part
        return store


def _ceil(n: int) -> int:
    return -(-n // PAD) * PAD


def _filled(x: Tensor, wide: int) -> Tensor:
    return nn.functional.pad(x, (0, wide - x.shape[-1]))


def _shares(shift: "TokenShift", mix: Any) -> Iterator[Tensor]:
    """Yield the share of the token itself for each role, [C] each."""
    learned = list(shift.parameters())
    like = mix.key.weight[0]
    for i in range(len(shift.roles)):
        if learned:
            yield learned[0 if shift.shared else i]
        else:
            share = torch.ones_like(like)
            share[: shift.n_shifted[i]] = 0.0
            yield share


def _constants(model: "LM") -> tuple[float, float | None]:
    mixes = [block.att for block in model.blocks if isinstance(block.att, WKVMix)]
    return (mixes[0].den_eps, mixes[0].k_max) if mixes else (0.0, None)


def _ffns(model: "LM") -> list[Any]:
    return [block.ffn for block in model.blocks]


def applies(model: "LM") -> bool:
    """Return whether the kernel computes what ``model`` does: float32 on the CPU, no sublayers but those it knows."""
    parameters = list(model.parameters())
    mixes = [block.att for block in model.blocks if type(block.att) is WKVMix]
    return (
        all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
        and all(type(block.att) in (WKVMix, ChannelMix) and type(block.ffn) is ChannelMix for block in model.blocks)
        and len({ffn.key.out_features for ffn in _ffns(model)}) == 1
        and len({(mix.den_eps, mix.k_max, mix.backend, mix.causal) for mix in mixes}) == 1
        and mixes[0].causal
        and {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {model.ln_out.eps}
        and model.time_out is None
        and model.positions is None
        and uses_kernel(mixes[0].backend, torch.device("cpu"))
    )


def decoder(model: "LM", kind: str) -> Decoder | None:
    """Return the native step of ``model``; None where it does not apply or, with a warning, computes wrong numbers."""
    if not applies(model):
        return None
    return Decoder(model, kind) if _sound(kind) else None


@functools.cache
def _sound(kind: str) -> bool:
    """Try the kernel on a small model against plain torch."""
    from rwkv_lab.models.factory import configure, skeleton

    model = skeleton(configure("rwkv_v4", n_layer=2, n_embd=80, ctx_len=4), 70, "reference").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        idx = torch.tensor([[3, 69, 0]])
        expected = model(idx)[0]
    step, state, found = Decoder(model, kind), None, []
    for token in idx.unbind(1):
        logits, state = step.step(token, state)
        found.append(logits)
    error = (torch.cat(found) - expected).norm() / expected.norm()
    if not error < PROBE_TOLERANCE[kind]:
        warnings.warn(f"slow plain torch in place of the native {kind} step: its numbers are wrong", stacklevel=2)
        return False
    return True
