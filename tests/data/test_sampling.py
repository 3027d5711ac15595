"""The order of training sequences: a pure function of their number, without overlap, exact at any size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_lab.config.errors import UserError
from rwkv_lab.data import sampling

ORDERS = st.sampled_from(["random", "cube", "sequential"])
SEEDS = st.integers(0, 2**64 - 1)


def is_prime(n):
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


@given(ORDERS, st.integers(1, 50), st.integers(4, 2000), SEEDS, st.integers(0, 10**15), st.integers(0, 60))
def test_every_sequence_and_its_targets_lie_within_the_tokens(order, ctx_len, chunks, seed, first, count):
    n_tokens = ctx_len * chunks + 1
    starts = sampling.offsets(order, n_tokens, ctx_len, seed, first, count)
    assert starts.dtype == np.int64 and starts.shape == (count,)
    assert (starts >= 0).all() and (starts + ctx_len + 1 <= n_tokens).all()


@given(ORDERS, SEEDS, st.integers(0, 10**12), st.integers(0, 40), st.integers(0, 40))
def test_same_stream_after_a_resume_anywhere(order, seed, first, before, after):
    whole = sampling.offsets(order, 5_003, 8, seed, first, before + after)
    resumed = sampling.offsets(order, 5_003, 8, seed, first + before, after)
    assert np.array_equal(whole[before:], resumed)


@given(st.integers(3, 20_000))
def test_cube_prime_is_the_largest_one_allowed(chunks):
    expected = next(p for p in range(chunks - 1, 1, -1) if p % 3 == 2 and is_prime(p))
    assert sampling.cube_prime(chunks) == expected


@settings(max_examples=30)
@given(st.integers(3, 3000), st.integers(0, 10**18))
def test_cube_is_a_permutation_of_every_pass(chunks, first):
    p = sampling.cube_prime(chunks)
    begin = first // p * p
    assert sorted(sampling.cube_indices(p, begin, p)) == list(range(p))


@settings(max_examples=30)
@given(st.integers(4, 300), st.integers(1, 12), SEEDS, st.integers(0, 1000))
def test_cube_covers_the_text_without_overlap_in_every_pass(chunks, ctx_len, seed, which):
    n_tokens = chunks * ctx_len + 1
    p = sampling.cube_prime(chunks)
    starts = np.sort(sampling.offsets("cube", n_tokens, ctx_len, seed, which * p, p))
    assert (np.diff(starts) == ctx_len).all()


@given(st.integers(3, 10**15), st.integers(0, 10**30))
def test_cube_index_is_exact_at_any_size(chunks, n):
    p = sampling.cube_prime(chunks)
    assert sampling.cube_index(chunks, n) == n * n * n % p
    assert sampling.cube_indices(p, n, 3).tolist() == [(n + i) ** 3 % p for i in range(3)]


@given(st.integers(1, 40), st.integers(2, 60), st.integers(0, 10**6))
def test_sequential_reads_everything_in_order_then_again(ctx_len, chunks, passes):
    n_tokens = chunks * ctx_len + 1
    starts = sampling.offsets("sequential", n_tokens, ctx_len, 0, passes * chunks, 2 * chunks)
    assert starts.tolist() == [i * ctx_len for i in range(chunks)] * 2


def test_random_offsets_are_those_of_splitmix64():
    """The generator's published first outputs from state 1234567 (Vigna's splitmix64.c)."""
    numbers = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * np.uint64(sampling.GOLDEN)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert sampling._mix(numbers).tolist() == expected


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_random_offsets_are_spread_evenly(seed):
    starts = sampling.offsets("random", 1000 + 16, 16, seed, 0, 100_000)
    counts = np.bincount(starts, minlength=1000)
    chi2 = ((counts - 100.0) ** 2 / 100.0).sum()
    assert len(counts) == 1000 and abs(chi2 - 999) < 6 * (2 * 999) ** 0.5


def test_seeds_give_different_streams():
    streams = {tuple(sampling.offsets("random", 10**6, 8, seed, 0, 50)) for seed in range(200)}
    assert len(streams) == 200


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_gather_gives_inputs_and_the_tokens_after_them(dtype):
    tokens = np.arange(200).astype(dtype)
    x, y = sampling.gather(tokens, np.array([0, 7, 190]), 9)
    assert x.dtype == y.dtype == np.int64
    assert x.tolist() == [list(range(s, s + 9)) for s in (0, 7, 190)]
    assert y.tolist() == [list(range(s + 1, s + 10)) for s in (0, 7, 190)]


@pytest.mark.parametrize("order", ["random", "cube", "sequential"])
def test_too_few_tokens(order):
    with pytest.raises(UserError, match="at least 17"):
        sampling.offsets(order, 16, 16, 0, 0, 1)


def test_cube_needs_three_chunks():
    with pytest.raises(UserError, match=r"data\.order=cube needs at least 3"):
        sampling.offsets("cube", 33, 16, 0, 0, 1)
