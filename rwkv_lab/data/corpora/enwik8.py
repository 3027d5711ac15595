"""enwik8: the first 100,000,000 bytes of a Wikipedia dump (Mahoney, Large Text Compression Benchmark)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.registry import register
from rwkv_lab.data.download import fetch, unpacked
from rwkv_lab.data.sources import Divided, OwnFiles, Sources, divided, local_file, own_text
from rwkv_lab.util.hashing import file_sha256

URLS = ("https://data.deepai.org/enwik8.zip", "https://mattmahoney.net/dc/enwik8.zip")
ZIP_SHA256 = "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"
SHA256 = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"
BYTES = 100_000_000


@register("data", "enwik8")
@dataclass
class Enwik8Config(OwnFiles, Divided):
    """100 MB of Wikipedia with its markup, divided 90/5/5 as in the literature; ``path`` names a local copy."""

    name: str = "enwik8"
    split: list[float] | None = setting(factory=lambda: [0.9, 0.05, 0.05])  # fractions, or sizes in bytes

    needs_files: ClassVar[bool] = False

    def sources(self, cache: Path) -> Sources:
        if self.train_path:
            return own_text(self, cache)
        file, key = self._file(cache)
        parts = divided([file], self, key, cache)
        size, found = file.stat().st_size, file_sha256(file, key, memo=cache / "hashes")
        if found != SHA256 and not self.path:
            raise UserError(f"{file} is not enwik8 (sha256 {found[:16]}…): remove it to fetch it again")
        notes = []
        if size != BYTES:
            notes.append(
                f"val_bpb is not comparable with published enwik8 results: {file} has {size} bytes, not {BYTES}"
            )
        elif found != SHA256:
            notes.append(
                f"val_bpb is not comparable with published enwik8 results: {file} is another text (sha256 differs)"
            )
        return Sources(parts, notes)

    def _file(self, cache: Path) -> tuple[Path, str]:
        """Return the unpacked file and the key that named it."""
        if self.path:
            file = local_file(self.path)
            if file.suffix == ".zip":
                file = unpacked(file, "enwik8", ("enwik8",), BYTES, cache, "data.path")[0]
            return file, "data.path"
        target = cache / "corpora" / "enwik8" / "enwik8"
        if not target.is_file():
            archive = fetch("enwik8.zip", URLS, ZIP_SHA256, cache, "enwik8")
            unpacked(archive, "enwik8", ("enwik8",), BYTES, cache, "data=enwik8")
        return target, "data=enwik8"
