"""The examples of CONTRIBUTING.md register what they claim to."""

import re
import sys
import types
from pathlib import Path

import pytest

from rwkv_lab.config import registry

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
REGISTERED = [re.findall(r'register\("(\w+)", "(\w+)"\)', example) for example in EXAMPLES]


def test_there_is_one_example_of_each_kind():
    assert sorted(kind for found in REGISTERED for kind, _ in found) == sorted(registry.KINDS)


@pytest.mark.parametrize(
    ("example", "found"), list(zip(EXAMPLES, REGISTERED, strict=True)), ids=[found[0][0] for found in REGISTERED]
)
def test_an_example_registers_its_component(example, found, monkeypatch):
    ((kind, name),) = found
    assert name not in registry.names(kind)
    monkeypatch.setitem(registry._members, kind, dict(registry._members[kind]))
    module = types.ModuleType(f"example_{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(example, f"CONTRIBUTING.md ({kind})", "exec"), module.__dict__)
    member = registry.get(kind, name)
    assert member.__doc__
    # A config is complete: no method of its kind is missing.
    assert not getattr(member, "__abstractmethods__", None)
    if registry.KINDS[kind].group:
        assert member().name == name
