"""Mistakes in the arguments of a command line."""

import pytest

from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.config.errors import UserError


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--lenght 3", "unrecognized arguments: --lenght 3 (did you mean '--length'?)"),
        ("--length x", "--length: invalid int value: 'x'"),
        ("--form tree", "--form: tree is unknown (did you mean 'three'?): choose one of two, three"),
    ],
)
def test_one_sentence(words: str, sentence: str) -> None:
    parser = Arguments(prog="python -m it")
    parser.add_argument("--length", type=int)
    parser.add_argument("--form", choices=("two", "three"))
    with pytest.raises(UserError) as raised:
        parser.parse_args(words.split())
    assert str(raised.value) == f"{sentence}; see python -m it --help"
