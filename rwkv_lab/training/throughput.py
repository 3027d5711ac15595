"""How fast a device can compute at most, which a run's speed is a share of."""

import functools
import time

import torch

from rwkv_lab.training.device import HALVES, Resolved

# Dense bf16 and fp16 products in FLOPs a second, from the makers' data sheets; the first name found in a card's counts.
CARDS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 125e12,
    "A10": 125e12,
    "A6000": 155e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}
NO_BF16 = ("V100", "T4")  # their figure is of fp16
SIZES = {"cpu": 512, "cuda": 8192}  # of the square matrices whose product is timed
TRIES = 3


def peak_flops(resolved: Resolved) -> float:
    """Return the most FLOPs a second of a run's device at its precision: of a known card, else measured here."""
    kind = torch.device(resolved.device).type
    name = torch.cuda.get_device_name(resolved.device) if kind == "cuda" else ""
    return known_peak(name, resolved.precision) or measured_peak(resolved.device, resolved.precision)


def known_peak(name: str, precision: str) -> float | None:
    """Return the peak of the card ``name`` in 16 bits; None for another card or a precision its sheet differs in."""
    card = next((card for card in CARDS if card in name), None)
    if card is None or precision not in HALVES or (precision == "bf16" and card in NO_BF16):
        return None
    return CARDS[card]


@functools.cache
def measured_peak(device: str, precision: str) -> float:
    """Return the FLOPs a second of a product of two square matrices, the best of three."""
    kind = torch.device(device).type
    n, cuda = SIZES[kind], kind == "cuda"
    a = torch.ones(n, n, device=device, dtype=HALVES.get(precision, torch.float32))
    best = float("inf")
    for _ in range(1 + TRIES):
        if cuda:
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        a @ a
        if cuda:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * n**3 / best
