"""Corpora, tokenizers and the order in which training reads them. Imports no torch."""

from rwkv_lab.data.dataset import Corpus, load, require_length, stored_configs
from rwkv_lab.data.token_cache import Split
from rwkv_lab.data.tokenizers.base import Tokenizer, from_json, unknown_in
from rwkv_lab.util.hashing import file_sha256

__all__ = [
    "Corpus",
    "Split",
    "Tokenizer",
    "file_sha256",
    "from_json",
    "load",
    "require_length",
    "stored_configs",
    "unknown_in",
]
