"""Power cuts: what a disk would have of a folder at any moment, by what had been flushed to it until then.

A file system may write names before contents, or contents before names; only fsync orders them. ``Disk`` records what
was flushed, and ``cut`` makes the folder as it would be found after the power came back.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest


class Disk:
    """Records every fsync of files and folders below ``root`` and takes the power away at chosen ones of them."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.moments = 0  # fsyncs and renames so far
        self._contents: dict[int, bytes] = {}  # by inode, as of the last fsync
        self._names: dict[int, dict[str, int]] = {}  # of a folder by inode, as of its last fsync
        self._held: list[int] = []  # open files, so that no inode number is used twice
        self._at: dict[int, Callable[[], None]] = {}
        fsync, replace, rename = os.fsync, os.replace, os.rename

        def flushed(number: int) -> None:
            fsync(number)
            path = Path(os.readlink(f"/proc/self/fd/{number}"))
            if path.is_relative_to(root):
                self._flush(path, number)
                self._moment()

        def renamed(how: Callable) -> Callable:
            def call(*arguments: object, **options: object) -> None:
                how(*arguments, **options)
                self._moment()

            return call

        patch.setattr(os, "fsync", flushed)
        patch.setattr(os, "replace", renamed(replace))
        patch.setattr(os, "rename", renamed(rename))

    def at(self, moment: int, do: Callable[[], None]) -> None:
        """Call ``do`` after fsync or rename number ``moment``."""
        self._at[moment] = do

    def close(self) -> None:
        for number in self._held:
            os.close(number)

    def _moment(self) -> None:
        self.moments += 1
        self._at.pop(self.moments, lambda: None)()

    def _flush(self, path: Path, number: int) -> None:
        inode = os.fstat(number).st_ino
        if inode not in self._contents and inode not in self._names:
            self._held.append(os.dup(number))
        if path.is_dir():
            self._names[inode] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self._contents[inode] = path.read_bytes()

    def cut(self, target: Path, draw: random.Random) -> None:
        """Write into the new folder ``target`` what is left of ``root``; what was not flushed is lost at random."""
        # Names before contents, contents before names, or either in each folder.
        self._restore(self.root, self.root.stat().st_ino, target, draw, draw.choice((0.0, 0.0, 0.5, 1.0)))

    def _restore(self, folder: Path, inode: int, target: Path, draw: random.Random, late: float) -> None:
        """Restore one folder, in which names that were not flushed are lost with probability ``late``."""
        target.mkdir()
        now = {entry.name: entry.inode() for entry in os.scandir(folder)} if folder.is_dir() else {}
        flushed = self._names.get(inode, {} if folder != self.root else now)
        names = flushed if draw.random() < late else now
        for name, number in names.items():
            path = folder / name
            is_folder = number in self._names or (now.get(name) == number and path.is_dir())
            if is_folder:
                self._restore(path, number, target / name, draw, late)
            else:
                live = path.read_bytes() if now.get(name) == number and path.is_file() else b""
                (target / name).write_bytes(self._left_of(number, live, draw))

    def _left_of(self, inode: int, live: bytes, draw: random.Random) -> bytes:
        """Return the flushed content; of what came behind it nothing, zeros or all."""
        flushed = self._contents.get(inode, b"")
        rest = live[len(flushed) :] if live.startswith(flushed) else b""
        return flushed + draw.choice((b"", bytes(len(rest)), rest))


def spread(moments: int, cuts: int, draw: random.Random) -> list[int]:
    """Return ``cuts`` different moments in order, the last of all among them."""
    return sorted([moments, *draw.sample(range(1, moments), min(cuts, moments) - 1)])
