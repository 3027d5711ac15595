"""Text out of token ids as they come: nothing is shown that a later token could change."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rwkv_lab.data import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST = 4  # tokens a character of UTF-8 can be spread over
CONTEXT = 8  # tokens of what was read that decide on spaces before the first one drawn


def streamed(tokenizer: "Tokenizer", before: list[int], ids: Iterable[int]) -> Iterator[str]:
    """Yield the text of ``ids``, which follow the tokens ``before``, in pieces as soon as each is certain.

    A character that several tokens make up comes with the last of them.
    """
    shown, waiting = before[-CONTEXT:], []
    for token in ids:
        waiting.append(token)
        piece = _added(tokenizer, shown, waiting)
        if piece and (not piece.endswith(REPLACEMENT) or len(waiting) >= LONGEST):
            yield piece
            shown, waiting = (shown + waiting)[-CONTEXT:], []
    if waiting and (piece := _added(tokenizer, shown, waiting)):
        yield piece


def _added(tokenizer: "Tokenizer", shown: list[int], waiting: list[int]) -> str:
    """Return what ``waiting`` adds; bytes shown as a broken character may turn out to begin a whole one."""
    before, after = tokenizer.decode(shown), tokenizer.decode(shown + waiting)
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    return after[same:]
