"""A v4 written by us loads in the public `rwkv` package and gives the same logits there."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from rwkv_lab import models
from rwkv_lab.cli import convert

# its own process: importing the package sets global flags of torch
READ = """
import os, sys
os.environ["RWKV_JIT_ON"] = os.environ["RWKV_CUDA_ON"] = "0"
import torch
from rwkv.model import RWKV
model, state, rows = RWKV(model=sys.argv[1], strategy="cpu fp32", verbose=False), None, []
for tokens in ([3, 1, 4, 1, 5], [9], [2, 6]):
    logits, state = model.forward(tokens, state, full_output=True)
    rows.append(logits.reshape(len(tokens), -1))
torch.save(torch.cat(rows), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("rwkv") is None, reason="needs the rwkv package: pip install '.[dev]'")
def test_the_public_package_gives_the_same_logits(tmp_path):
    model = models.build("rwkv_v4", vocab_size=64, n_layer=3, n_embd=64, ctx_len=16)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    models.save(model, tmp_path / "model.safetensors")
    convert.main([str(tmp_path), str(tmp_path / "out.pth"), "--to", "original"])
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "out"), str(tmp_path / "logits.pt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    want = model(torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]]))[0].detach()
    got = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
