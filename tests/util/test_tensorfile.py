"""Files of tensors are read by the safetensors package, and their hash is that of the file."""

import hashlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rwkv_lab.util.tensorfile import BLOCK, NAMES, write_tensors


def test_tensors_of_every_type_and_shape(tmp_path):
    made = {str(kind): torch.arange(7).to(kind) for kind in NAMES}
    made |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3), "part": torch.arange(12.0).view(3, 4)[:, 1:3]}
    made |= {"long": torch.arange(BLOCK // 4 + 5, dtype=torch.float32)}
    digest = write_tensors(made, tmp_path / "x.safetensors", {"about": "ünïcode"})
    assert digest == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"about": "ünïcode"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_another_type_leaves_the_old_file(tmp_path):
    write_tensors({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(KeyError):
        write_tensors({"x": torch.ones(1, dtype=torch.complex64)}, tmp_path / "x.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], torch.ones(1))
