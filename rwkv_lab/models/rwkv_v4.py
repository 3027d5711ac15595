"""RWKV v4 (Peng et al. 2023): v3 with the scan in exact arithmetic, without limit on k and without an epsilon.

The scan keeps a running maximum of the exponents, so that no k overflows; L2Wrap is in the recipe.
"""

from torch import Generator

from rwkv_lab.models import init
from rwkv_lab.models.blocks.wkv_mix import SCALES, curved_time_vectors, make_blocks, mixing_flops
from rwkv_lab.models.config import ScanConfig
from rwkv_lab.models.lm import LM, Block
from rwkv_lab.models.reference_names import SCAN_RENAMES, SCAN_SHAPES, Original

__all__ = ["FIXED_LENGTH", "ORIGINAL", "RECURRENT", "blocks", "initialise", "mixing_flops"]

RECURRENT = True
FIXED_LENGTH = False
ORIGINAL = Original("v4", "RWKV", SCAN_RENAMES, SCAN_SHAPES)


def blocks(config: ScanConfig, backend: str) -> list[Block]:
    """One block a layer; the scan as it is."""
    return make_blocks(config, shared_shift=False, den_eps=0.0, k_max=None, backend=backend)


def initialise(model: LM, generator: Generator) -> None:
    """Fills every parameter as in v3."""
    init.norms(model)
    init.orthogonal_embedding(model, 1e-4, generator)
    init.orthogonal_linears(model, SCALES, generator)
    init.layer_ramp_shifts(model)
    curved_time_vectors(model)
