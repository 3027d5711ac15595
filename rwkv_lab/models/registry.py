"""The architectures. Adding one is a file in this folder, a line here and a YAML in conf/model/.

The file offers `blocks(config, backend) -> list[Block]`, `initialise(model, generator)`, which fills every parameter,
`mixing_flops(config) -> float`, and the constants `RECURRENT` (its state carries all of the past) and `FIXED_LENGTH`
(its parameters allow no more than ctx_len tokens). One that reads and writes checkpoints of the original implementation
also has `ORIGINAL`, see original.py. Imports no torch.
"""

from typing import NamedTuple

from rwkv_lab.models import config


class Entry(NamedTuple):
    config: type[config.ModelConfig]  # schema of its configuration
    target: str  # module that builds it


MODELS: dict[str, Entry] = {
    "rwkv_v1": Entry(config.RWKV1Config, "rwkv_lab.models.rwkv_v1"),
    "rwkv_v2": Entry(config.RWKV2Config, "rwkv_lab.models.rwkv_v2"),
    "rwkv_v3": Entry(config.RWKV3Config, "rwkv_lab.models.rwkv_v3"),
    "rwkv_v4": Entry(config.RWKV4Config, "rwkv_lab.models.rwkv_v4"),
    "mha_rotary": Entry(config.MHARotaryConfig, "rwkv_lab.models.mha_rotary"),
    "mha_shift": Entry(config.MHAShiftConfig, "rwkv_lab.models.mha_shift"),
    "mha_pro": Entry(config.MHAProConfig, "rwkv_lab.models.mha_pro"),
}
