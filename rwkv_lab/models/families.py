"""Fields and rules that several architectures share: the scan family and the heads family. Imports no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import ModelConfig
from rwkv_lab.config.model_fields import ShiftKind

if TYPE_CHECKING:
    from torch import Generator

    from rwkv_lab.models.lm import LM
    from rwkv_lab.models.state import Mix


@dataclass
class ScanConfig(ModelConfig):
    """RWKV v2, v3 and v4: a WKV time mix and a squared-ReLU channel mix in every block, no biases."""

    recurrent: ClassVar[bool] = True
    reads_both_ways: ClassVar[bool] = True
    recipe_emb_norm: ClassVar[bool] = True
    token_shift: ShiftKind = "learned"  # previous token mixed into each sublayer
    ffn_pre: bool = False  # block 0 has a channel mix in place of its time mix
    time_vectors_from: str | None = setting(None, file=True)  # smaller run or file whose time_* vectors to stretch

    def check(self) -> None:
        super().check()
        if self.ffn_pre and self.n_layer == 1:
            raise UserError("model.ffn_pre=true needs model.n_layer >= 2: one layer would have no time mix")
        if self.init_from and self.time_vectors_from:
            raise UserError("model.init_from and model.time_vectors_from both set the time_* vectors: give one of them")

    def scan_model(
        self, vocab_size: int, *, shared_shift: bool, den_eps: float, k_max: float | None, backend: str
    ) -> "LM":
        """Return the model of these constants of the scan; with ffn_pre block 0 has two channel mixes."""
        from rwkv_lab.models.blocks.channel_mix import ChannelMix
        from rwkv_lab.models.blocks.wkv_mix import WKVMix
        from rwkv_lab.models.lm import LM, Block

        def channel_mix(layer: int) -> "Mix[Any]":
            return ChannelMix(self.n_embd, self.shift(layer), shared_shift)

        def time_mix(layer: int) -> "Mix[Any]":
            if layer == 0 and self.ffn_pre:
                return channel_mix(layer)
            return WKVMix(
                self.n_embd,
                self.shift(layer),
                shared_shift=shared_shift,
                den_eps=den_eps,
                k_max=k_max,
                backend=backend,
                causal=not self.bidirectional,
            )

        return LM(self, vocab_size, [Block(self, l, time_mix(l), channel_mix(l)) for l in range(self.n_layer)])

    def initialise_matrices(self, model: "LM", generator: "Generator") -> None:
        """Fill norms, embedding and matrices: a zero output keeps every sublayer silent at first, and zero key and
        receptance make a time mix start as a plain decaying average."""
        from rwkv_lab.models import init
        from rwkv_lab.models.blocks.channel_mix import ChannelMix
        from rwkv_lab.models.blocks.head_qk import HeadQK
        from rwkv_lab.models.blocks.wkv_mix import WKVMix
        from rwkv_lab.models.lm import LM

        scales: init.Scales = {
            WKVMix: {"key": 0.0, "receptance": 0.0, "output": 0.0},
            ChannelMix: {"value": 0.0, "receptance": 0.0},
            LM: {"head": 0.5},
            HeadQK: {"q": 0.0, "k": 0.1},
        }
        init.norms(model)
        init.orthogonal_embedding(model, 1e-4, generator)
        init.orthogonal_linears(model, scales, generator)

    def mixing_flops(self) -> float:
        """Return the forward FLOPs per token of the scan, about 12 a channel, layer and direction."""
        return 12.0 * (1 + self.bidirectional) * self.n_embd * (self.n_layer - self.ffn_pre)


@dataclass
class HeadsConfig(ModelConfig):
    """RWKV v1 and the three attention models published with it: heads, biases, factors per position."""

    reads_both_ways: ClassVar[bool] = True

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
