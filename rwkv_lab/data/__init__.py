"""Corpora, tokenizers and the order in which training reads them. Imports no torch."""

from rwkv_lab.data.config import DataConfig, TokenizerConfig
from rwkv_lab.data.dataset import Corpus, content_hashes, load, require_length, source_files
from rwkv_lab.data.token_cache import Split
from rwkv_lab.data.tokenizers.text import Tokenizer, from_json
from rwkv_lab.util.hashing import file_sha256

__all__ = [
    "Corpus",
    "DataConfig",
    "Split",
    "Tokenizer",
    "TokenizerConfig",
    "content_hashes",
    "file_sha256",
    "from_json",
    "load",
    "require_length",
    "source_files",
]
