"""The tokenizers, one file each."""
