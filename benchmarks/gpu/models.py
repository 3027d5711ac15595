"""Steps on whole models: every model at every precision, and one in a graph, compiled and on a side stream."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.report import Step
from rwkv_lab import models as lab
from rwkv_lab.config.registry import names
from rwkv_lab.data.token_cache import Split
from rwkv_lab.inference.sampling import generate
from rwkv_lab.models.lm import LM
from rwkv_lab.training import device
from rwkv_lab.training.evaluate import evaluate_full

VOCABULARY = 97
LOSS_TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 2e-2}


def make(name: str, ctx_len: int, **fields: Any) -> LM:
    return lab.build(name, vocab_size=VOCABULARY, n_layer=2, n_embd=64, ctx_len=ctx_len, seed=1, **fields)


def batches(ctx_len: int, where: str, batch: int = 4) -> Callable[[int], torch.Tensor]:
    """Step i's tokens [batch,ctx_len+1]: a text that repeats, so that there is something to learn."""
    text = torch.arange(100_000) ** 2 % 89

    def tokens(i: int) -> torch.Tensor:
        starts = torch.randint(90_000, (batch, 1), generator=torch.Generator().manual_seed(i))
        return text[starts + torch.arange(ctx_len + 1)].to(where)

    return tokens


def train(model: LM, resolved: device.Resolved, steps: int, ctx_len: int) -> list[float]:
    """The losses of ``steps`` updates by fused Adam."""
    model.to(resolved.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    tokens = batches(ctx_len, resolved.device)
    losses = []
    for i in range(steps):
        batch = tokens(i)
        with resolved.autocast():
            loss = model.loss(batch[:, :-1], batch[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return [loss.item() for loss in losses]


def models(step: Step) -> None:
    """Twenty updates, an evaluation and a sample of each; the first loss against that of the CPU in float32."""
    ctx_len, steps = (16, 3) if step.rehearse else (128, 20)
    precisions = ("fp32", "bf16") if step.rehearse else ("bf16", "fp32", "tf32")
    forms: list[dict[str, Any]] = [{"head_qk_dim": 16, "head_qk": form} for form in ("sum", "max")]
    text = Split(np.arange(2000, dtype=np.int64) ** 2 % 89, 1)
    for name in names("model"):
        for fields in forms[:1] if step.rehearse else forms:
            expected = train(make(name, ctx_len, **fields), device.Resolved("cpu", "fp32", "native", 1), 1, ctx_len)[0]
            for precision in precisions:
                resolved = device.Resolved(step.device, precision, "native", torch.get_num_threads())
                device.apply(resolved)
                model = make(name, ctx_len, **fields)
                losses = train(model, resolved, steps, ctx_len)
                with resolved.autocast():
                    held_out = evaluate_full(model, text, ctx_len, 8, step.device).loss
                    sample = generate(model, [1], 8, torch.Generator(step.device).manual_seed(0))
                off = abs(losses[0] - expected) / expected
                good = off < LOSS_TOLERANCE[precision] and losses[-1] < losses[0] and math.isfinite(held_out)
                what = f"{name} {precision} head-QK {fields['head_qk']}"
                step.check(
                    what, good and len(sample) == 8, first=losses[0], off=off, last=losses[-1], held_out=held_out
                )


def graphs(step: Step) -> None:
    """The loss and gradients of a model: eager, on a side stream, in a CUDA graph, compiled into one graph."""
    ctx_len = 16 if step.rehearse else 256
    model = make("rwkv_v4", ctx_len).to(step.device)
    parameters = list(model.parameters())
    batch = batches(ctx_len, step.device)(0)

    def eager() -> list[torch.Tensor]:
        loss = model.loss(batch[:, :-1], batch[:, 1:])
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    expected = [x.clone() for x in eager()]

    def compare(what: str, found: list[torch.Tensor], tolerance: float, **values: float) -> None:
        off = max(float((x - e).norm() / e.norm().clamp(min=1e-12)) for x, e in zip(found, expected, strict=True))
        step.check(what, off <= tolerance, off=off, **values)

    compare("twice", eager(), 1e-5)
    if not step.rehearse:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            found = eager()
        side.synchronize()
        compare("side stream", found, 1e-5)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = eager()
        graph.replay()
        torch.cuda.synchronize()
        compare("CUDA graph", found, 1e-5)
    started = time.monotonic()
    backend = "aot_eager" if step.rehearse else "inductor"
    compiled = torch.compile(model.loss, fullgraph=True, backend=backend)
    loss = compiled(batch[:, :-1], batch[:, 1:])
    found = [loss.detach(), *torch.autograd.grad(loss, parameters)]
    compare(f"torch.compile, {backend}, one graph", found, 1e-3, seconds=time.monotonic() - started)
