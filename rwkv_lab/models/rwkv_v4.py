"""RWKV v4 (Peng et al. 2023, arXiv 2305.13048): v3 with the scan in exact arithmetic, no limit on k and no epsilon.

The scan keeps a running maximum of the exponents, so that no k overflows; L2Wrap is in the recipe.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkv_lab.config.registry import register
from rwkv_lab.models.families import ScanConfig
from rwkv_lab.models.rwkv_v3 import curved_time_vectors

if TYPE_CHECKING:
    from torch import Generator

    from rwkv_lab.models.lm import LM
    from rwkv_lab.models.rwkv_lm_format import Original


@register("model", "rwkv_v4")
@dataclass
class RWKV4Config(ScanConfig):
    """RWKV v4: the scan in exact arithmetic."""

    name: str = "rwkv_v4"
    l2_wrap: bool = True  # gradient that pulls the largest logit of each position towards 0

    def build(self, vocab_size: int, backend: str) -> "LM":
        """The scan without a limit on k."""
        return self.scan_model(vocab_size, shared_shift=False, den_eps=0.0, k_max=None, backend=backend)

    def initialise(self, model: "LM", generator: "Generator") -> None:
        """Every parameter as in v3."""
        from rwkv_lab.models import init

        self.initialise_matrices(model, generator)
        init.layer_ramp_shifts(model)
        curved_time_vectors(model)

    def original(self) -> "Original":
        from rwkv_lab.models.rwkv_lm_format import SCAN_RENAMES, SCAN_SHAPES, Original

        return Original("v4", "RWKV", SCAN_RENAMES, SCAN_SHAPES)
