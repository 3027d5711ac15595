"""The tokenizer of an earlier run, for a new text."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.kinds import Holding, TokenizerConfig
from rwkv_lab.config.registry import register
from rwkv_lab.data.sources import Sources
from rwkv_lab.data.tokenizers.base import Tokenizer, from_json
from rwkv_lab.runs import manifest
from rwkv_lab.runs.store import select
from rwkv_lab.util.hashing import file_sha256, home_expanded
from rwkv_lab.util.paths import runs_dir

if TYPE_CHECKING:
    from rwkv_lab.config.schema import Config


@register("tokenizer", "run")
@dataclass
class RunConfig(TokenizerConfig):
    """The tokenizer of a run, so that its weights can start a model of another text (model.init_from)."""

    name: str = "run"
    path: str | None = None  # run: a path, STUDY/NAME, the start of a name, or an id

    reads: ClassVar[tuple[Holding, ...]] = ("text", "token ids")

    def check(self) -> None:
        if not self.path:
            raise UserError("tokenizer.path is missing: tokenizer=run needs tokenizer.path=RUN, e.g. an id")

    def check_run(self, run: "Config") -> None:
        """Resolve the name of a run, which means one below ``runs_dir``, to its folder."""
        if not home_expanded(str(self.path), "tokenizer.path").exists():
            self.path = str(self._file(runs_dir(run.runs_dir)).parent)

    def file_hashes(self, group: str) -> dict[str, str]:
        return {f"{group}.path": file_sha256(self._file(), f"{group}.path")}

    def build(self, sources: Sources) -> Tokenizer:
        file = self._file()
        manifest.verify(file.parent, file.name)
        return from_json(file.read_text(encoding="utf-8"))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Tokenizer:
        raise ValueError("a stored tokenizer is never of the kind run")

    def _file(self, root: Path | None = None) -> Path:
        """Return the run's tokenizer.json; UserError if there is no such run below ``root``, or no such file."""
        given = home_expanded(str(self.path), "tokenizer.path")
        if given.is_file():
            return given
        try:
            file = select(str(given), root).path / "tokenizer.json"
        except UserError as error:
            raise UserError(f"tokenizer.path={self.path}: {error}") from None
        if not file.is_file():
            raise UserError(f"tokenizer.path={self.path}: {file.parent} has no tokenizer.json: give another run")
        return file
