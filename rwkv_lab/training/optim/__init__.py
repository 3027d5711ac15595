"""How optimizers divide a model's parameters."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def block_matrices(parameters: "Mapping[str, nn.Parameter]") -> list[str]:
    """Return the names of the weights of linear layers inside the blocks, in order.

    Embedding, output head, head-QK, norms, biases and per-channel or per-position vectors are not among them.
    """
    return [
        name
        for name, parameter in parameters.items()
        if name.startswith("blocks.") and name.endswith(".weight") and parameter.ndim == 2
    ]
