"""The probe of sentence embeddings: its verses, and that it finds what is there and nothing else."""

import numpy as np

from benchmarks.embeddings import PARTS, accuracies, counts, verses


def test_verses_are_of_every_part_and_the_same_again():
    lines, labels = verses(3)
    assert np.bincount(labels).tolist() == [3] * len(PARTS)
    assert len(set(lines)) == len(lines) and min(map(len, lines)) >= 40
    assert verses(3)[0] == lines and verses(3, seed=1)[0] != lines


def test_counts_are_shares_of_the_most_frequent():
    assert counts(["aab", "ab"], 1, 2).tolist() == [[2 / 3, 1 / 3], [1 / 2, 1 / 2]]
    assert counts(["aab", "ab"], 2, 1).tolist() == [[1 / 3], [1 / 2]]


def test_the_probe_finds_a_linear_difference_and_no_other():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 60)
    noise = random.normal(size=(180, 4))
    assert accuracies(noise + 3 * np.eye(4)[labels], labels).mean() > 0.9
    assert abs(accuracies(noise, labels).mean() - 1 / 3) < 0.12
