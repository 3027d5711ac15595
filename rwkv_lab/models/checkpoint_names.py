"""Names and shapes of parameters in checkpoints of other programs, as ours; whatever the model's configuration."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Buffers that the original kept in its checkpoints beside parameters.
BUFFERS = re.compile(r"(^|\.)(mask|copy_mask|inv_freq)$")
Renames = tuple[tuple[str, str], ...]

# From the names of RwkvForCausalLM (transformers) to those of the original v4, applied in order.
FROM_HUGGING_FACE: Renames = (
    (r"^rwkv\.", ""),
    (r"^embeddings\.", "emb."),
    (r"^blocks\.0\.pre_ln\.", "blocks.0.ln0."),
    (r"\.attention\.", ".att."),
    (r"\.feed_forward\.", ".ffn."),
    (r"\.time_mix_key$", ".time_mix_k"),
    (r"\.time_mix_value$", ".time_mix_v"),
    (r"\.time_mix_receptance$", ".time_mix_r"),
)
TO_HUGGING_FACE: Renames = (
    (r"^emb\.", "embeddings."),
    (r"\.ln0\.", ".pre_ln."),
    (r"\.att\.", ".attention."),
    (r"\.ffn\.", ".feed_forward."),
    (r"\.time_mix_k$", ".time_mix_key"),
    (r"\.time_mix_v$", ".time_mix_value"),
    (r"\.time_mix_r$", ".time_mix_receptance"),
    (r"^(?!head\.)", "rwkv."),
)
# From the original's names, of every version, to ours.
FROM_ORIGINAL: Renames = (
    (r"^tok_emb\.", "emb."),
    (r"^ln_f\.", "ln_out."),
    (r"^head_(q|k)\.", r"head_qk.\1."),
    (r"^blocks\.0\.ffnPre\.", "blocks.0.att."),
    (r"\.attn\.", ".att."),
    (r"\.mlp\.weight\.", ".ffn.output."),
    (r"\.mlp\.", ".ffn."),
    (r"\.head_mix\.weight$", ".head_mix"),
    (r"(?<!\.shift)\.time_mix", ".shift.time_mix"),
)
VECTOR = re.compile(r"\.time_(mix(_[kvr])?|decay|first)$")  # [C] for us, [1,1,C] or [C,1] there


def renamed(name: str, renames: Renames) -> str:
    """Return ``name`` after all replacements."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def is_hugging_face(names: Mapping[str, object]) -> bool:
    """Return whether these are names of transformers' RwkvForCausalLM."""
    return "rwkv.embeddings.weight" in names


def original_names(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return a checkpoint by the original's names: itself without buffers, or renamed from transformers' names.

    A head tied to the embedding, which such a checkpoint lacks, becomes a copy of it.
    """
    if not is_hugging_face(tensors):
        return {name: value for name, value in tensors.items() if not BUFFERS.search(name)}
    found = {renamed(name, FROM_HUGGING_FACE): value for name, value in tensors.items()}
    return {"head.weight": found["emb.weight"]} | found


def our_names(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return a checkpoint of the original or of transformers by our names and with our shapes."""
    found = {renamed(name, FROM_ORIGINAL): value for name, value in original_names(tensors).items()}
    return {name: value.flatten() if VECTOR.search(name) else value for name, value in found.items()}
