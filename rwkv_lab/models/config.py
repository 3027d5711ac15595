"""What can be configured about each model: one dataclass per architecture, its defaults the model's own recipe.

Imports no torch, so that a command line can check a configuration before anything heavy starts.
"""

from dataclasses import dataclass

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting, validate
from rwkv_lab.config.kinds import ModelConfig
from rwkv_lab.config.registry import register


@dataclass
class ScanConfig(ModelConfig):
    """RWKV v2, v3 and v4."""

    token_shift: str = "learned"
    ffn_pre: bool = False  # block 0 has a channel mix in place of its time mix
    time_vectors_from: str | None = setting(None, file=True)  # smaller run or file whose time_* vectors to stretch

    def check(self) -> None:
        super().check()
        if self.ffn_pre and self.n_layer == 1:
            raise UserError("model.ffn_pre=true needs model.n_layer >= 2: one layer would have no time mix")
        if self.init_from and self.time_vectors_from:
            raise UserError("model.init_from and model.time_vectors_from both set the time_* vectors: give one of them")


@register("model", "rwkv_v2")
@dataclass
class RWKV2Config(ScanConfig):
    name: str = "rwkv_v2"
    norm: str = "post"
    head_qk_dim: int = 256


@register("model", "rwkv_v3")
@dataclass
class RWKV3Config(ScanConfig):
    name: str = "rwkv_v3"


@register("model", "rwkv_v4")
@dataclass
class RWKV4Config(ScanConfig):
    name: str = "rwkv_v4"
    l2_wrap: bool = True


@dataclass
class HeadsConfig(ModelConfig):
    """RWKV v1 and the three attention models that were published with it."""

    n_head: int | None = setting(None, low=1)  # heads H; unset: heads of 64 channels, at least 4 of them
    n_attn: int | None = setting(None, low=1)  # channels inside the time mix or attention; unset: n_embd
    n_ffn: int | None = setting(None, low=1)  # unit of the channel mix's hidden width; unset: n_embd
    time_out: bool = True  # learned factor per position before the output head; limits the length to ctx_len

    @property
    def attention_width(self) -> int:
        return self.n_embd if self.n_attn is None else self.n_attn

    @property
    def ffn_width(self) -> int:
        return self.n_embd if self.n_ffn is None else self.n_ffn

    @property
    def heads(self) -> int:
        return max(4, self.attention_width // 64) if self.n_head is None else self.n_head

    def check(self) -> None:
        super().check()
        if self.attention_width % self.heads:
            raise UserError(
                f"model.n_head: {self.heads} heads cannot share {self.attention_width} channels evenly; "
                "n_head must divide n_attn (n_embd if n_attn is unset)"
            )


@register("model", "rwkv_v1")
@dataclass
class RWKV1Config(HeadsConfig):
    name: str = "rwkv_v1"
    token_shift: str = "half"
    tiny_attention: int = setting(0, low=0)  # width of a small attention added to each time mix; 0 = off
    tiny_attention_heads: int = setting(1, low=1)  # its heads

    def check(self) -> None:
        super().check()
        if self.tiny_attention % self.tiny_attention_heads:
            raise UserError("model.tiny_attention_heads must divide the width model.tiny_attention")
        if self.tiny_attention_heads > 1 and self.tiny_attention == 0:
            raise UserError("model.tiny_attention_heads does nothing alone: set model.tiny_attention, e.g. 64")


@register("model", "mha_rotary")
@dataclass
class MHARotaryConfig(HeadsConfig):
    name: str = "mha_rotary"


@register("model", "mha_shift")
@dataclass
class MHAShiftConfig(HeadsConfig):
    name: str = "mha_shift"
    token_shift: str = "half"


@register("model", "mha_pro")
@dataclass
class MHAProConfig(HeadsConfig):
    name: str = "mha_pro"
    token_shift: str = "half"


def check(config: ModelConfig) -> None:
    """Raise UserError if ``config`` describes a model that cannot be built."""
    validate(config, "model.")
    config.check()
