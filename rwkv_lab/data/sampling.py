"""The start of each training sequence: a pure function of its number, the same for resumed runs and any rank count.

A sequence of ``ctx_len`` inputs and its targets needs ctx_len + 1 tokens, so starts are 0 to n_tokens - ctx_len - 1.
"""

from functools import lru_cache

import numpy as np

from rwkv_lab.config.errors import UserError

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def offsets(order: str, n_tokens: int, ctx_len: int, seed: int, first: int, count: int) -> np.ndarray:
    """Return the start offsets, int64 [count], of the sequences number ``first`` to ``first + count - 1``.

    ``random``: hash(seed, n) mod (n_tokens - ctx_len), by the counter-based SplitMix64 (Steele, Lea, Flood 2014).
    ``sequential``: chunk n mod chunks, of chunks = (n_tokens - 1) // ctx_len.
    ``cube``: ctx_len * cube_index(chunks, n) plus a bias that seed and n // p choose within the tokens left over, so
    that the grid of chunks moves from one pass over the p chunks to the next.

    Raises UserError for too few tokens.
    """
    chunks = (n_tokens - 1) // ctx_len
    if chunks < 1:
        raise UserError(f"{n_tokens} tokens are too few for sequences of {ctx_len}: at least {ctx_len + 1} are needed")
    if order == "random":
        return (hashed(seed, first, count) % np.uint64(n_tokens - ctx_len)).astype(np.int64)
    if order == "sequential":
        return _numbers_mod(first, count, chunks) * ctx_len
    if order == "cube":
        p = cube_prime(chunks)
        return cube_indices(p, first, count) * ctx_len + _cube_bias(n_tokens - p * ctx_len, p, seed, first, count)
    raise UserError(f"data.order={order} is unknown: choose from random, cube, sequential")


def gather(tokens: np.ndarray, starts: np.ndarray, ctx_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets, int64 [B,T] each, of the sequences that begin at ``starts`` [B]; copies only these."""
    rows = windows(tokens, starts, ctx_len)
    return rows[:, :-1], rows[:, 1:]


def windows(tokens: np.ndarray, starts: np.ndarray, ctx_len: int) -> np.ndarray:
    """Return the ``ctx_len`` + 1 tokens from each of ``starts`` [B] on, int64 [B,T+1]; copies only these."""
    return tokens[starts[:, None] + np.arange(ctx_len + 1)].astype(np.int64)


def hashed(seed: int, first: int, count: int) -> np.ndarray:
    """Return SplitMix64 of the numbers first .. first + count - 1, uint64 [count]; every seed has its own stream."""
    with np.errstate(over="ignore"):
        return _hashed(seed, np.uint64(first & MASK) + np.arange(count, dtype=np.uint64))


def _hashed(seed: int, numbers: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        stream = _mix(np.array([seed & MASK], np.uint64) + np.uint64(GOLDEN))
        return _mix(stream + (numbers + np.uint64(1)) * np.uint64(GOLDEN))


def draws(seed: int, purpose: int, numbers: np.ndarray, width: int) -> np.ndarray:
    """Return ``width`` random numbers for each of the sequences of these ``numbers`` [B], uint64 [B,width].

    Every ``purpose`` has a stream of its own, apart from that of the order of training.
    """
    stream = int(hashed(seed, MASK - purpose, 1)[0])
    with np.errstate(over="ignore"):
        places = numbers.astype(np.uint64)[:, None] * np.uint64(width) + np.arange(width, dtype=np.uint64)
    return _hashed(stream, places)


def folded(rows: np.ndarray) -> np.ndarray:
    """Return a hash of each row of whole numbers [B,N], uint64 [B]."""
    with np.errstate(over="ignore"):
        return _mix((rows.astype(np.uint64) * (hashed(0, 0, rows.shape[1]) | np.uint64(1))).sum(axis=1))


def _mix(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def cube_index(chunks: int, n: int) -> int:
    """Return the chunk that step ``n`` of the order ``cube`` reads: n³ mod p, p = cube_prime(chunks); exact.

    n -> n³ permutes the residues of p because 3 does not divide p - 1; every p steps see every chunk below p once. The
    order of the original's pretraining on the Pile (BlinkDL/RWKV-LM).
    """
    return pow(n, 3, cube_prime(chunks))


def cube_indices(p: int, first: int, count: int) -> np.ndarray:
    """Return n³ mod p of n = first .. first + count - 1, exact, int64 [count]."""
    residues = _numbers_mod(first, count, p)
    if p < 1 << 32:
        n = residues.astype(np.uint64)
        return (n * n % np.uint64(p) * n % np.uint64(p)).astype(np.int64)
    return np.array([pow(int(n), 3, p) for n in residues], np.int64)


@lru_cache(maxsize=64)
def cube_prime(chunks: int) -> int:
    """Return the largest prime p < chunks with p mod 3 = 2; UserError below 3 chunks, which have none."""
    if chunks < 3:
        raise UserError(
            f"data.order=cube needs at least 3 chunks of model.ctx_len tokens (got {chunks}): use data.order=random"
        )
    if chunks < 6:
        return 2
    p = chunks - 1
    p -= (p - 5) % 6
    while not _is_prime(p):
        p -= 6
    return p


def _is_prime(n: int) -> bool:
    """Return whether n is prime: Miller-Rabin with the first 13 primes, exact below 3.3e24 (Sorenson, Webster 2017)."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    if n in bases:
        return True
    if n < 2 or any(n % base == 0 for base in bases):
        return False
    twos = ((n - 1) & -(n - 1)).bit_length() - 1
    odd = (n - 1) >> twos
    for base in bases:
        x = pow(base, odd, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def _numbers_mod(first: int, count: int, modulus: int) -> np.ndarray:
    return (np.arange(count, dtype=np.int64) + first % modulus) % modulus


def _cube_bias(room: int, p: int, seed: int, first: int, count: int) -> np.ndarray:
    passes = np.array([(first + i) // p for i in range(count)]) if count else np.zeros(0, np.int64)
    earliest = first // p
    drawn = hashed(seed, earliest, int(passes[-1] - earliest) + 1 if count else 1)
    return (drawn[passes - earliest] % np.uint64(room)).astype(np.int64)
