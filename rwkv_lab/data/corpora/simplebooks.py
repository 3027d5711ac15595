"""SimpleBooks: children's books, raw text in its own train, valid and test parts (Nguyen 2019, arXiv 1911.12391)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.registry import register
from rwkv_lab.data.download import fetch, record, unpacked
from rwkv_lab.data.sources import PARTS, OwnFiles, Sources, local_file, own_text, whole
from rwkv_lab.util.hashing import home_expanded

URLS = ("https://dldata-public.s3.us-east-2.amazonaws.com/simplebooks.zip",)
LIMIT = 2_000_000_000


@register("data", "simplebooks_92")
@dataclass
class SimpleBooks92Config(OwnFiles):
    """SimpleBooks-92, about 92 million words; ``path`` names a local archive, or a folder with its three files."""

    name: str = "simplebooks_92"

    needs_files: ClassVar[bool] = False

    def sources(self, cache: Path) -> Sources:
        if self.train_path:
            return own_text(self, cache)
        folder = f"{self.name.replace('_', '-')}-raw"
        files, key = self._files(tuple(f"{folder}/{part}.txt" for part in ("train", "valid", "test")), cache)
        return Sources({part: whole([file], key, cache) for part, file in zip(PARTS, files, strict=True)})

    def _files(self, names: tuple[str, ...], cache: Path) -> tuple[list[Path], str]:
        """Return the three unpacked files and the key that named them."""
        if self.path:
            base = home_expanded(self.path, "data.path")
            if not base.is_dir():
                return unpacked(local_file(self.path), self.name, names, LIMIT, cache, "data.path"), "data.path"
            files = [base / Path(name).name for name in names]
            for file in files:
                if not file.is_file():
                    raise UserError(
                        f"data.path={self.path} has no {file.name}: train.txt, valid.txt and test.txt are expected"
                    )
            return files, "data.path"
        files = [cache / "corpora" / self.name / name for name in names]
        if not all(file.is_file() for file in files):
            archive = fetch("simplebooks.zip", URLS, None, cache, self.name)
            files = unpacked(archive, self.name, names, LIMIT, cache, f"data={self.name}")
        for name, file in zip(names, files, strict=True):
            record(cache / "downloads", name, file, cache / "hashes")
        return files, f"data={self.name}"


@register("data", "simplebooks_2")
@dataclass
class SimpleBooks2Config(SimpleBooks92Config):
    """SimpleBooks-2, about 2 million words, of the same archive."""

    name: str = "simplebooks_2"
