"""The stable Python interface."""

import re
import subprocess
import sys

import pytest

import rwkv_lab


def test_importing_the_package_imports_no_torch():
    code = "import sys, rwkv_lab; rwkv_lab.runs, rwkv_lab.cube_index; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", rwkv_lab.__all__)
def test_every_name_is_there_and_documented(name, repository):
    value = getattr(rwkv_lab, name)
    assert value.__doc__
    assert name in dir(rwkv_lab)
    assert f"`{name}" in (repository / "docs" / "api.md").read_text()


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = rwkv_lab.nonsense


def test_the_example_runs(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", (repository / "docs" / "api.md").read_text(), re.S)[1]
    names: dict = {}
    exec(example, names)
    assert names["logits"].shape == (4, 64)
    assert len(names["ids"]) == 20
    assert all(a.equal(b) for a, b in zip(names["model"].parameters(), names["same"].parameters(), strict=True))
