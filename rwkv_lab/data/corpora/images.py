"""Pictures as rows of tokens, one a pixel, with captions before or behind them (a sketch of Peng's RWKV-LM README).

[Img] picture                         without a caption
[TxtFirst] text [Img] picture         or, drawn for each example,  [ImgFirst] picture [Txt] text
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import DataConfig, Drawing, Holding, TokenizerConfig
from rwkv_lab.config.model_fields import IMG, IMG_FIRST, TXT, TXT_FIRST
from rwkv_lab.config.registry import register
from rwkv_lab.data.dataset import Corpus
from rwkv_lab.data.pictures import (
    SUFFIXES,
    Picture,
    grid,
    middle,
    neighbours,
    opened,
    packed,
    patches,
    photographs,
    pillow,
    rand_round,
    resized,
    tiles,
    unpacked,
)
from rwkv_lab.data.sampling import draws
from rwkv_lab.data.sources import Sources
from rwkv_lab.data.token_cache import Sequences, Split
from rwkv_lab.data.tokenizers.base import Tokenizer
from rwkv_lab.data.tokenizers.pixels import PixelTokenizer
from rwkv_lab.util.hashing import file_sha256, home_expanded, text_sha256

if TYPE_CHECKING:
    from rwkv_lab.config.schema import Config

PLACES, ROUNDING = 0x70696300, 0x70696301  # streams of random numbers
SHOWN = 8  # pictures in a row of the grid
OUTSIDE = -1  # place of a token outside a picture


@register("data", "images")
@dataclass
class ImagesConfig(DataConfig):
    """Pictures, one token a pixel; bits per pixel channel and accuracy of pixels, no bits per byte.

    ``data.path`` is a folder of PNG and JPEG files: NAME.txt beside NAME.png is its caption, else the name of its
    subfolder. Without one, patches of the photographs in scikit-image, or else scikit-learn.
    """

    name: str = "images"
    path: str | None = None  # folder; unset: patches of photographs
    size: int = setting(32, low=2)  # side of a picture in pixels
    fit: Literal["resize", "cut"] = "resize"  # files: shorter side to size, and the middle; or squares as they are
    levels: int = setting(8, low=2, high=64)  # levels of each colour channel; levels**3 tokens
    rand_round: bool = True  # round at random while training and share the target between both neighbours
    held_out: float = setting(0.1, above=0, below=1)  # share of the files of a folder that is held out

    holds: ClassVar[Holding] = "images"
    weighted: ClassVar[bool] = True
    usage: ClassVar[str | None] = 'rwkv-lab generate {run} "" --out drawn.png'

    def file_hashes(self, group: str) -> dict[str, str]:
        if self.path is None:
            return {f"{group}.photographs": text_sha256(b"".join(file.read_bytes() for file in photographs()))}
        files = self._files()
        content = [f"{file.relative_to(self._folder())} {file_sha256(file, 'data.path')}" for file, _ in files]
        return {f"{group}.path": text_sha256("\n".join(content).encode())}

    def check(self) -> None:
        if self.order != "random":
            raise UserError(f"data.order={self.order} does nothing for data=images: leave it out")
        if self.fit != "resize" and self.path is None:
            raise UserError(f"data.fit={self.fit} does nothing without data.path=FOLDER")

    def check_run(self, run: "Config") -> None:
        super().check_run(run)
        if not run.objective.weighted:
            raise UserError(
                f"objective={run.objective.name} cannot weight the neighbours of data=images: use objective=lm"
            )
        if run.model.positions_2d:
            run.model.image_size, run.model.image_levels = self.size, self.levels
            run.model.pixel_signs()

    def sources(self, cache: Path) -> Sources:
        raise UserError("data=images has no text and no tokens to prepare: its sequences are made when they are read")

    def made(self, tokenizer: TokenizerConfig, stored: Tokenizer | None) -> Corpus:
        pillow()
        train, held = patches(self.size) if self.path is None else self._divided()
        built = PixelTokenizer(self.size, self.levels)
        parts = [
            ImageSplit(
                self._looked_at(pictures),
                0,
                task=self,
                tokenizer=built,
                values=np.stack([picture.colours for picture in pictures]) * ((self.levels - 1) / 255.0),
                captions=tuple(picture.caption for picture in pictures),
                held=is_held,
            )
            for pictures, is_held in ((train, False), (held, True))
        ]
        content = b"".join(part.values.tobytes() + "\n".join(part.captions).encode() for part in parts)
        note = (
            "val_bpb is not measured: val_loss and val_accuracy are those of the pixels, in nats and share of "
            f"{built.pixels} colours"
        )
        return Corpus(
            built, parts[0], parts[1], None, {f"{len(train) + len(held)} pictures": text_sha256(content)}, [note]
        )

    def drawings(self, corpus: Corpus) -> list[Drawing]:
        """Return the lower halves of held-out pictures, and pictures from a caption each or from nothing."""
        split, S = _held(corpus), self.size
        halves = split.plain(split.some())[:, : S * S // 2]
        begin = np.full((len(halves), 1), split.tokenizer.sign(IMG))
        captions = list(dict.fromkeys(caption for caption in split.captions if caption))[:SHOWN]
        prompts = [split.tokenizer.encode(caption)[None] for caption in captions] or [np.repeat(begin[:1], SHOWN, 0)]
        pixels = split.tokenizer.pixels
        return [
            Drawing(np.concatenate((begin, halves), axis=1), S * S - S * S // 2, pixels),
            *(Drawing(prompt, S * S, pixels) for prompt in prompts),
        ]

    def picture(self, corpus: Corpus, drawn: list[np.ndarray]) -> bytes:
        """Return three rows: held-out pictures, the same with their lower half drawn, and pictures drawn whole."""
        split, S = _held(corpus), self.size
        real = split.plain(split.some())
        completed = np.concatenate((real[:, : S * S // 2], drawn[0]), axis=1)
        rows = (real, completed, np.concatenate(drawn[1:]))
        return grid([unpacked(row.reshape(-1, S, S), self.levels) for row in rows])

    def _looked_at(self, pictures: list[Picture]) -> np.ndarray:
        """Return the tokens of the first picture, to look at."""
        colours = np.rint(pictures[0].colours * ((self.levels - 1) / 255.0)).astype(np.int64)
        return packed(colours, self.levels).reshape(-1).astype(np.uint32)

    def _folder(self) -> Path:
        folder = home_expanded(str(self.path), "data.path")
        if not folder.is_dir():
            raise UserError(f"data.path={self.path} is not a folder of PNG and JPEG files")
        return folder

    def _files(self) -> list[tuple[Path, str]]:
        """Return the pictures of the folder and their captions, in sorted order."""
        folder = self._folder()
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if len(found) < 2:
            raise UserError(f"data.path={self.path} has {len(found)} PNG and JPEG files: at least 2 are needed")
        pairs = []
        for file in found:
            text = file.with_suffix(".txt")
            below = file.parent.name if file.parent != folder else ""
            pairs.append((file, text.read_text(errors="replace").strip() if text.is_file() else below))
        return pairs

    def _divided(self) -> tuple[list[Picture], list[Picture]]:
        """Return training and held-out pictures; the latter are the files whose sha256 comes first."""
        files = sorted(self._files(), key=lambda pair: file_sha256(pair[0], "data.path"))
        first = min(len(files) - 1, max(1, round(self.held_out * len(files))))
        held, train = ([each for pair in part for each in self._cut(*pair)] for part in (files[:first], files[first:]))
        if not (held and train):
            raise UserError(f"data.size={self.size} is larger than the files of data.path={self.path}")
        return train, held

    def _cut(self, file: Path, caption: str) -> list[Picture]:
        image = opened(file)
        if self.fit == "resize":
            return [Picture(middle(resized(image, self.size), self.size), caption)]
        return [Picture(tile, caption) for tile in tiles(np.asarray(image, np.float32), self.size, self.size)]


@dataclass(frozen=True, eq=False)
class ImageSplit(Split):
    """The training or the held-out pictures; ``tokens`` are those of the first, to look at."""

    task: ImagesConfig = field(kw_only=True)
    tokenizer: PixelTokenizer = field(kw_only=True)
    values: np.ndarray = field(kw_only=True)  # [N,S,S,3] float32, 0 to levels - 1
    captions: tuple[str, ...] = field(kw_only=True)
    held: bool = field(kw_only=True)

    weighted: ClassVar[bool] = True
    counted: ClassVar[str] = "pixels"

    def __len__(self) -> int:
        return len(self.values) * (self.task.size**2 + 1)

    def whole(self, ctx_len: int) -> int:
        return len(self.values) * -(-(self.task.size**2) // ctx_len)

    def some(self) -> np.ndarray:
        """Return the numbers of a few pictures to show, from all over the split."""
        return np.unique(np.linspace(0, len(self.values) - 1, SHOWN).astype(np.int64))

    def plain(self, numbers: np.ndarray) -> np.ndarray:
        """Return the pictures of these ``numbers`` [B] rounded to the nearest levels, as tokens [B,S*S]."""
        colours = np.rint(self.values[numbers]).astype(np.int64)
        return packed(colours, self.task.levels).reshape(len(numbers), -1)

    def sequences(self, order: str, ctx_len: int, seed: int, first: int, count: int) -> Sequences:
        """Return the sequences number ``first`` to ``first + count - 1`` with weights, targets and places.

        Training: the window begins anywhere in an example, and further examples follow. Held out: the pictures in
        order, in as many windows as they need, pixels alone counted.
        """
        return self._held_out(ctx_len, first, count) if self.held else self._training(ctx_len, seed, first, count)

    def _held_out(self, T: int, first: int, count: int) -> Sequences:
        pixels = self.task.size**2
        windows = -(-pixels // T)
        number, part = np.divmod((first + np.arange(count)) % (len(self.values) * windows), windows)
        whole = np.full((count, windows * T + 1), self.tokenizer.sign(IMG), np.int64)
        whole[:, 1 : pixels + 1] = self.plain(number)
        place = part[:, None] * T + np.arange(T + 1)  # [B,T+1] in ``whole``
        weights = (place[:, 1:] <= pixels).astype(np.float32)
        return Sequences(np.take_along_axis(whole, place, 1), weights, None, place[:, 0] - 1)

    def _training(self, T: int, seed: int, first: int, count: int) -> Sequences:
        numbers = first + np.arange(count)
        examples = -(-(T + 1) // (self.task.size**2 + 1)) + 1  # enough to fill a row, whatever the offset
        drawn = draws(seed, PLACES, numbers, 1 + 2 * examples)
        ids = np.empty((count, T + 1), np.int64)
        values = np.zeros((count, T + 1, 3), np.float32)
        places = np.empty((count, T + 1), np.int64)
        for b in range(count):
            parts = [self._example(int(which), int(order)) for which, order in drawn[b, 1:].reshape(-1, 2)]
            offset = int(drawn[b, 0] % np.uint64(len(parts[0][0])))
            kept = slice(offset, offset + T + 1)
            ids[b], values[b], places[b] = (np.concatenate(pieces)[kept] for pieces in zip(*parts, strict=True))
        inside = places != OUTSIDE
        u = draws(seed, ROUNDING, numbers, 3 * (T + 1)).reshape(count, T + 1, 3) / 2.0**64
        rounded = rand_round(values, u) if self.task.rand_round else np.rint(values).astype(np.int64)
        rows = np.where(inside, packed(rounded, self.task.levels), ids)
        if not self.task.rand_round:
            return Sequences(rows, np.ones((count, T), np.float32), rows[:, 1:], places[:, 0])
        tokens, shares = neighbours(values[:, 1:], self.task.levels)
        alone = np.eye(1, 8, dtype=np.float32)  # a token that is not of a pixel has all of its share
        inner = inside[:, 1:, None]
        shares, tokens = np.where(inner, shares, alone), np.where(inner, tokens, rows[:, 1:, None])
        return Sequences(rows, shares, tokens, places[:, 0])

    def _example(self, which: int, order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return an example's ids [N], colours [N,3] and places of its pixels [N], OUTSIDE for other tokens."""
        n, sign = which % len(self.values), self.tokenizer.sign
        letters = self.tokenizer.letters(self.captions[n])
        before, behind = np.array([sign(IMG)]), np.zeros(0, np.int64)
        if self.captions[n] and order % 2:
            before = np.concatenate(([sign(TXT_FIRST)], letters, [sign(IMG)]))
        elif self.captions[n]:
            before, behind = np.array([sign(IMG_FIRST)]), np.concatenate(([sign(TXT)], letters))
        pixels, ends = self.task.size**2, (len(before), len(behind))
        return (
            np.concatenate((before, np.zeros(pixels, np.int64), behind)),
            np.pad(self.values[n].reshape(-1, 3), (ends, (0, 0))),
            np.pad(np.arange(pixels), ends, constant_values=OUTSIDE),
        )


def _held(corpus: Corpus) -> ImageSplit:
    assert isinstance(corpus.val, ImageSplit)
    return corpus.val
