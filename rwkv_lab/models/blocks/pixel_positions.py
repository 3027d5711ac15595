"""Places of pixels in a picture that is read as a row of tokens (a sketch in the README of Peng's RWKV-LM).

The place of a pixel is counted from the sign that begins its picture, so a text needs no array of places beside it; a
chunk that begins inside a picture is told the place of its first token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNKNOWN = -(1 << 30)  # place of a token before the first sign; stays below 0 however many follow


class PixelPositions(nn.Module):
    """x and y of each pixel as one-hot channels and, from -1 to 1, as two more: 2 S + 2 channels, no parameters.

    size    side S of a picture
    pixels  token ids below this one are pixels
    begins  token ids of the signs before the first pixel
    """

    def __init__(self, size: int, pixels: int, begins: tuple[int, ...], n_embd: int):
        super().__init__()
        self.size = size
        self.pixels = pixels
        self.begins = begins
        self.n_embd = n_embd

    def forward(self, idx: Tensor, start: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Tokens idx [B,T], place of the first [B] (None: unknown) -> what to add to their channels [B,T,C], and the
        place of the token that would follow [B]."""
        B, T = idx.shape
        S = self.size
        if start is None:
            start = idx.new_full((B,), UNKNOWN)
        t = torch.arange(T, device=idx.device)
        begins = torch.zeros_like(idx, dtype=torch.bool)
        for token in self.begins:
            begins |= idx == token
        last = torch.where(begins, t, -1).cummax(dim=1).values  # [B,T] of the sign before each token
        place = torch.where(last >= 0, t - last - 1, start.unsqueeze(1) + t)
        inside = (idx < self.pixels) & (place >= 0) & (place < S * S)
        y, x = place.clamp(0, S * S - 1) // S, place.clamp(0, S * S - 1) % S
        scale = 2.0 / max(1, S - 1)
        near = torch.stack((x, y), dim=-1) * scale - 1.0  # [B,T,2]
        channels = torch.cat((F.one_hot(x, S), F.one_hot(y, S), near), dim=-1) * inside.unsqueeze(-1)
        return F.pad(channels.to(dtype), (0, self.n_embd - 2 * S - 2)), torch.where(
            last[:, -1] >= 0, T - last[:, -1] - 1, start + T
        )
