"""RWKV v3 (Peng 2022, RWKV-LM): v2's scan in pre-norm blocks, with a norm after the tiny embedding.

Unlike v2, each of k, v and r has its own learned token shift, and the vectors start from curves over layer and channel.
"""

from torch import Generator

from rwkv_lab.models import init
from rwkv_lab.models.blocks.wkv_mix import SCALES, curved_time_vectors, make_blocks, mixing_flops
from rwkv_lab.models.config import ScanConfig
from rwkv_lab.models.lm import LM, Block
from rwkv_lab.models.reference_names import COLUMN_SHAPES, SCAN_RENAMES, Original

__all__ = ["FIXED_LENGTH", "ORIGINAL", "RECURRENT", "blocks", "initialise", "mixing_flops"]

RECURRENT = True
FIXED_LENGTH = False
ORIGINAL = Original("v3", "RWKV", SCAN_RENAMES, COLUMN_SHAPES)


def blocks(config: ScanConfig, backend: str) -> list[Block]:
    """One block a layer; k cut off at 60 and 1e-8 in the denominator of the scan."""
    return make_blocks(config, shared_shift=False, den_eps=1e-8, k_max=60.0, backend=backend)


def initialise(model: LM, generator: Generator) -> None:
    """Fills every parameter: orthogonal matrices, tiny embedding, vectors by layer and channel."""
    init.norms(model)
    init.orthogonal_embedding(model, 1e-4, generator)
    init.orthogonal_linears(model, SCALES, generator)
    init.layer_ramp_shifts(model)
    curved_time_vectors(model)
