"""Configs of corpora and tokenizers, by name."""

from typing import Any

from rwkv_lab.config import registry
from rwkv_lab.config.kinds import DataConfig, TokenizerConfig


def data_config(name: str, **fields: Any) -> DataConfig:
    """The config of a corpus."""
    return registry.get("data", name)(**fields)


def tokenizer_config(name: str = "char", **fields: Any) -> TokenizerConfig:
    """The config of a tokenizer."""
    return registry.get("tokenizer", name)(**fields)
