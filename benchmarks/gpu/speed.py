"""Steps on speed: whole training steps, and tokens one by one."""

import functools
import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.report import Step
from rwkv_lab import models
from rwkv_lab.config.registry import names
from rwkv_lab.config.schema import TrainerConfig
from rwkv_lab.inference.recurrent import RecurrentModel
from rwkv_lab.models.factory import configure, skeleton
from rwkv_lab.models.lm import LM
from rwkv_lab.training import device

VOCABULARY, PILE_VOCABULARY = 256, 50277
PROFILED = 8


def matmul_peak(where: str, n: int) -> float:
    """FLOPs per second of a bf16 product of n x n matrices."""
    a, b = (torch.randn(n, n, device=where, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / _seconds(where, lambda: a @ b, 10)


def _wait(where: str) -> None:
    if where == "cuda":
        torch.cuda.synchronize()


def _seconds(where: str, run: Callable[[], object], turns: int) -> float:
    """Seconds a turn, after two to warm up."""
    for _ in range(2):
        run()
    _wait(where)
    started = time.perf_counter()
    for _ in range(turns):
        run()
    _wait(where)
    return (time.perf_counter() - started) / turns


def updates(
    model: LM, resolved: device.Resolved, batch: int, ctx_len: int, capturable: bool = False
) -> Callable[[], None]:
    """One update by fused Adam on the same random tokens, without a look at any number."""
    model.to(resolved.device).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True, capturable=capturable)
    tokens = torch.randint(model.vocab_size, (batch, ctx_len + 1), device=resolved.device)

    def update() -> None:
        with resolved.autocast():
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def cases(rehearse: bool) -> list[tuple[str, str, dict[str, Any], int, int]]:
    """(what, model, fields, vocabulary, batch)."""
    if rehearse:
        tiny = {"n_layer": 1, "n_embd": 32, "ctx_len": 16}
        return [(f"{name} L1 D32", name, tiny, VOCABULARY, 2) for name in ("rwkv_v1", "rwkv_v4", "mha_rotary")]
    l6 = {"n_layer": 6, "n_embd": 512, "ctx_len": 1024}
    small = [(f"{name} L6 D512", name, l6, VOCABULARY, 12) for name in names("model")]
    return [
        *small,
        ("rwkv_v4 169M", "rwkv_v4", {"n_layer": 12, "n_embd": 768, "ctx_len": 1024}, PILE_VOCABULARY, 8),
        ("rwkv_v4 1.5B's shapes, 4 of 24 layers", "rwkv_v4", {"n_layer": 4, "n_embd": 2048, "ctx_len": 1024}, 256, 8),
    ]


def training(step: Step) -> None:
    """Tokens per second, share of the measured matmul peak, memory, host time, waits for the device, kernels."""
    peak = matmul_peak(step.device, 64 if step.rehearse else 8192)
    step.found("bf16 matmul peak", tflops=peak / 1e12)
    precision = "fp32" if step.rehearse else "bf16"
    resolved = device.Resolved(step.device, precision, "native", torch.get_num_threads())
    device.apply(resolved)
    for what, name, fields, vocabulary, batch in cases(step.rehearse):
        try:
            _time_training(step, resolved, what, name, fields, vocabulary, batch, peak)
        except torch.OutOfMemoryError as error:
            step.check(what, False, cause=str(error).splitlines()[0])
        if step.device == "cuda":
            torch.cuda.empty_cache()


def _time_training(
    step: Step,
    resolved: device.Resolved,
    what: str,
    name: str,
    fields: dict[str, Any],
    vocabulary: int,
    batch: int,
    peak: float,
) -> None:
    model = models.build(name, vocab_size=vocabulary, head_qk_dim=0, **fields)
    _time_model(step, resolved, what, model, batch, peak)


def _time_model(step: Step, resolved: device.Resolved, what: str, model: LM, batch: int, peak: float) -> None:
    update = updates(model, resolved, batch, model.config.ctx_len)
    tokens = batch * model.config.ctx_len
    cuda = step.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = _seconds(step.device, update, 2 if step.rehearse else 8)
    found: dict[str, object] = {
        "tokens_per_second": tokens / seconds,
        "mfu": models.flops_per_token(model) * tokens / seconds / peak,
    }
    if cuda:
        found["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        _wait("cuda")
        started = time.perf_counter()
        update()
        found["host_ms"] = 1e3 * (time.perf_counter() - started)
        _wait("cuda")
        found |= {"step_ms": 1e3 * seconds, "waits": _waits(update), **_kernels(update)}
    step.found(what, **found)


def _waits(update: Callable[[], None]) -> int:
    """How often an update waits for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _kernels(update: Callable[[], None]) -> dict[str, object]:
    """How many kernels an update starts, and those it spends most time in."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        update()
        _wait("cuda")
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    count = sum(event.count for event in events if event.self_device_time_total)
    times = (f"{event.key[:40]} {event.self_device_time_total / 1e3:.2f} ms x{event.count}" for event in events)
    return {"launches": count, "kernels": "; ".join(itertools.islice(times, PROFILED))}


def hollow(name: str, vocabulary: int, where: str, **fields: Any) -> LM:
    """A model for timing on the device: small random weights, which are there sooner than a recipe's."""
    model = skeleton(configure(name, **fields), vocabulary, "native").to_empty(device=where)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    return model


def large(step: Step) -> None:
    """Training of 430M, and of 1.5B with activations computed again, at the released sizes."""
    peak = matmul_peak(step.device, 64 if step.rehearse else 8192)
    resolved = device.Resolved(step.device, "bf16", "native", torch.get_num_threads())
    device.apply(resolved)
    sizes: dict[str, tuple[int, int, bool]] = {"430M": (24, 1024, False), "1.5B": (24, 2048, True)}
    ctx_len, vocabulary = (16, VOCABULARY) if step.rehearse else (1024, PILE_VOCABULARY)
    for size, (n_layer, n_embd, again) in sizes.items():
        fields = {"n_layer": 2, "n_embd": 32} if step.rehearse else {"n_layer": n_layer, "n_embd": n_embd}
        try:
            model = hollow("rwkv_v4", vocabulary, step.device, ctx_len=ctx_len, **fields)
            device.dress(model, TrainerConfig(activation_checkpointing=again), resolved)
            _time_model(step, resolved, f"rwkv_v4 {size}{', activations again' if again else ''}", model, 8, peak)
        except torch.OutOfMemoryError as error:
            step.check(size, False, cause=str(error).splitlines()[0])
        if step.device == "cuda":
            torch.cuda.empty_cache()


def compiled(step: Step) -> None:
    """An update of L6 D512 as it is, in fp16, with compiled blocks, and as one CUDA graph: time, host time, kernels."""
    peak = matmul_peak(step.device, 64 if step.rehearse else 8192)
    size = (
        {"n_layer": 1, "n_embd": 32, "ctx_len": 16} if step.rehearse else {"n_layer": 6, "n_embd": 512, "ctx_len": 1024}
    )
    for what, precision, blocks in (("as it is", "bf16", False), ("fp16", "fp16", False), ("compiled", "bf16", True)):
        resolved = device.Resolved(step.device, precision, "native", torch.get_num_threads(), compile=blocks)
        device.apply(resolved)
        model = hollow("rwkv_v4", VOCABULARY, step.device, **size)
        # A rehearsal leaves the machine's compiler aside.
        if blocks and not step.rehearse:
            device.dress(model, TrainerConfig(), resolved)
        _time_model(step, resolved, what, model, 12, peak)
    if step.device == "cuda":
        _time_graph(step, device.Resolved("cuda", "bf16", "native", 1), hollow("rwkv_v4", VOCABULARY, "cuda", **size))


def _time_graph(step: Step, resolved: device.Resolved, model: LM) -> None:
    """The same update captured whole: what the host costs beside the device."""
    update = updates(model, resolved, 12, model.config.ctx_len, capturable=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            update()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            update()
    except RuntimeError as error:
        step.check("one CUDA graph", False, cause=str(error).splitlines()[0])
        return
    step.found("one CUDA graph", step_ms=1e3 * _seconds("cuda", graph.replay, 8))


def decode(step: Step) -> None:
    """Milliseconds a token at batch 1: as written, and as one CUDA graph."""
    sizes = {"tiny": (1, 32)} if step.rehearse else {"169M": (12, 768), "1.5B": (24, 2048)}
    types = (torch.float32,) if step.rehearse else (torch.bfloat16, torch.float32)
    for size, (n_layer, n_embd) in sizes.items():
        vocabulary = VOCABULARY if step.rehearse else PILE_VOCABULARY
        built = models.build("rwkv_v4", vocab_size=vocabulary, n_layer=n_layer, n_embd=n_embd, ctx_len=1024)
        for dtype in types:
            recurrent = RecurrentModel(built.to(step.device, dtype).eval())
            token = torch.zeros(1, dtype=torch.long, device=step.device)
            _, state = recurrent.prefill(token[:, None])
            kind = str(dtype).removeprefix("torch.")
            turn = functools.partial(recurrent.step, token, state)
            seconds = _seconds(step.device, turn, 4 if step.rehearse else 20)
            step.found(f"{size} {kind} eager", ms=1e3 * seconds)
            if step.device == "cuda":
                graph = torch.cuda.CUDAGraph()
                with torch.no_grad(), torch.cuda.graph(graph):
                    turn()
                step.found(f"{size} {kind} as a graph", ms=1e3 * _seconds("cuda", graph.replay, 50))
                del graph
