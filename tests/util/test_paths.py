"""Commands in messages, as the user of a checkout or of an installed copy types them."""

import pytest

from rwkv_lab.cli.main import COMMANDS
from rwkv_lab.util import paths

WRITTEN = {
    "python run.py seed=2": "rwkv-lab train seed=2",
    "python -m analysis fit runs/a": "rwkv-lab fit runs/a",
    'python -m rwkv_lab.generate RUN "x"': 'rwkv-lab generate RUN "x"',
    "make one with 'python -m analysis optimal'": "make one with 'rwkv-lab optimal'",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_an_installed_copy_names_its_own_command(text, monkeypatch):
    assert paths.as_typed(text) == text
    monkeypatch.setattr(paths, "CHECKOUT", None)
    assert paths.as_typed(text) == WRITTEN[text]


def test_every_command_of_analysis_is_one_of_the_console_script():
    from analysis.cli import commands

    assert set(commands()) <= set(COMMANDS)
