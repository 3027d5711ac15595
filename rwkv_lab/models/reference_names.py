"""What a model's parameters are called in the original implementation, and how shaped (Peng 2021-2023, RWKV-LM)."""

import re
from collections.abc import Mapping
from typing import NamedTuple


class Original(NamedTuple):
    """The counterpart of one of our architectures."""

    version: str  # v1 | v2 | v3 | v4
    model_type: str  # RWKV | MHA_rotary | MHA_shift | MHA_pro
    renames: tuple[tuple[str, str], ...]  # patterns and replacements that turn our names into theirs, applied in order
    shapes: Mapping[str, tuple[int, ...]]  # their shape by the end of their name, -1 for the length; others are as ours

    def name(self, ours: str) -> str:
        """Their name of our parameter."""
        for pattern, replacement in self.renames:
            ours = re.sub(pattern, replacement, ours)
        return ours

    def shape(self, theirs: str, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Their shape of the parameter they call `theirs`, from our shape; -1 stands for the length."""
        return next((shape for end, shape in self.shapes.items() if theirs.endswith(end)), ours)


_HEAD_QK = (r"^head_qk\.(q|k)\.", r"head_\1.")

SCAN_RENAMES = (_HEAD_QK, (r"\.shift\.time_mix", ".time_mix"))
SCAN_SHAPES: Mapping[str, tuple[int, ...]] = {f".time_mix{role}": (1, 1, -1) for role in ("", "_k", "_v", "_r")}
COLUMN_SHAPES: Mapping[str, tuple[int, ...]] = {**SCAN_SHAPES, "time_decay": (-1, 1), "time_first": (-1, 1)}

HEADS_RENAMES = (
    _HEAD_QK,
    (r"^emb\.", "tok_emb."),
    (r"^ln_out\.", "ln_f."),
    (r"\.att\.", ".attn."),
    (r"\.ffn\.output\.", ".mlp.weight."),
    (r"\.ffn\.", ".mlp."),
    (r"\.head_mix$", ".head_mix.weight"),
)
