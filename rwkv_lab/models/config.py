"""What can be configured about each model: one dataclass per architecture, its defaults the model's own recipe.

Imports no torch, so that a command line can check a configuration before anything heavy starts.
"""

from dataclasses import dataclass

from rwkv_lab.config.errors import UserError

TOKEN_SHIFTS = ("none", "half", "learned")
HEAD_QK_FORMS = ("sum", "max")
NORMS = ("pre", "post")


@dataclass
class ModelConfig:
    """What every architecture offers. A default that differs between models stands in the model's own class."""

    name: str = ""  # key of the registry
    n_layer: int = 4  # blocks
    n_embd: int = 128  # channels C of the residual stream
    ctx_len: int = 256  # tokens of a training sequence
    token_shift: str = "none"  # previous token mixed into each sublayer: none | half the channels | learned share
    small_init_emb: bool | None = None  # true: tiny embedding + a norm after it; false: unit scale; unset: own recipe
    norm: str = "pre"  # pre: x += f(norm(x)) | post: x = norm(x); x += f(x)
    head_qk_dim: int = 0  # width of the head-QK term, which copies earlier tokens to the output; 0 = off
    head_qk: str = "sum"  # amounts of a token that occurs several times: sum | max
    l2_wrap: bool = False  # gradient that pulls the largest logit of each position towards 0
    init_from: str | None = None  # run folder or .safetensors file whose weights to start from


@dataclass
class ScanConfig(ModelConfig):
    """RWKV v2, v3 and v4."""

    token_shift: str = "learned"
    ffn_pre: bool = False  # block 0 has a channel mix in place of its time mix
    time_vectors_from: str | None = None  # smaller trained run or file whose time_* vectors to stretch to this size


@dataclass
class RWKV2Config(ScanConfig):
    name: str = "rwkv_v2"
    norm: str = "post"
    head_qk_dim: int = 256


@dataclass
class RWKV3Config(ScanConfig):
    name: str = "rwkv_v3"


@dataclass
class RWKV4Config(ScanConfig):
    name: str = "rwkv_v4"
    l2_wrap: bool = True


@dataclass
class HeadsConfig(ModelConfig):
    """RWKV v1 and the three attention models that were published with it."""

    n_head: int | None = None  # heads H; unset: heads of 64 channels, at least 4 of them
    n_attn: int | None = None  # channels inside the time mix or attention; unset: n_embd
    n_ffn: int | None = None  # unit of the channel mix's hidden width; unset: n_embd
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


@dataclass
class RWKV1Config(HeadsConfig):
    name: str = "rwkv_v1"
    token_shift: str = "half"
    tiny_attention: int = 0  # width of a small attention added to each time mix; 0 = off
    tiny_attention_heads: int = 1  # its heads


@dataclass
class MHARotaryConfig(HeadsConfig):
    name: str = "mha_rotary"


@dataclass
class MHAShiftConfig(HeadsConfig):
    name: str = "mha_shift"
    token_shift: str = "half"


@dataclass
class MHAProConfig(HeadsConfig):
    name: str = "mha_pro"
    token_shift: str = "half"


def check(config: ModelConfig) -> None:
    """Raises Mistake where `config` describes no possible model."""
    for key in ("n_layer", "n_embd", "ctx_len"):
        _at_least(config, key, 1)
    _at_least(config, "head_qk_dim", 0)
    _one_of(config, "token_shift", TOKEN_SHIFTS)
    _one_of(config, "head_qk", HEAD_QK_FORMS)
    _one_of(config, "norm", NORMS)
    if config.head_qk != "sum" and config.head_qk_dim == 0:
        raise UserError(
            f"model.head_qk={config.head_qk} does nothing without head-QK: set model.head_qk_dim, say to 256"
        )
    if isinstance(config, ScanConfig):
        _check_scan(config)
    if isinstance(config, HeadsConfig):
        _check_heads(config)
    if isinstance(config, RWKV1Config):
        _check_tiny_attention(config)


def _check_scan(config: ScanConfig) -> None:
    if config.ffn_pre and config.n_layer == 1:
        raise UserError(
            "model.ffn_pre=true leaves a model of one layer without a time mix: it needs model.n_layer >= 2"
        )
    if config.init_from and config.time_vectors_from:
        raise UserError(
            "model.init_from and model.time_vectors_from both set the time_* vectors: give only one of them"
        )


def _check_heads(config: HeadsConfig) -> None:
    for key in ("n_head", "n_attn", "n_ffn"):
        if getattr(config, key) is not None:
            _at_least(config, key, 1)
    if config.attention_width % config.heads:
        raise UserError(
            f"model.n_head: {config.heads} heads cannot share {config.attention_width} channels evenly; "
            "n_head must divide n_attn (n_embd where n_attn is unset)"
        )


def _check_tiny_attention(config: RWKV1Config) -> None:
    _at_least(config, "tiny_attention", 0)
    _at_least(config, "tiny_attention_heads", 1)
    if config.tiny_attention % config.tiny_attention_heads:
        raise UserError("model.tiny_attention_heads must divide the width model.tiny_attention")
    if config.tiny_attention_heads > 1 and config.tiny_attention == 0:
        raise UserError("model.tiny_attention_heads does nothing without a width: set model.tiny_attention, say to 64")


def _at_least(config: ModelConfig, key: str, least: int) -> None:
    if getattr(config, key) < least:
        raise UserError(f"model.{key} is {getattr(config, key)}; it must be at least {least}")


def _one_of(config: ModelConfig, key: str, known: tuple[str, ...]) -> None:
    if getattr(config, key) not in known:
        raise UserError(f"model.{key} is {getattr(config, key)!r}; choose one of {', '.join(known)}")
