"""Steps on the machine: versions, the tests marked gpu, compute-sanitizer."""

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys

import torch

from benchmarks.gpu.report import Step
from rwkv_lab.ops.toolchain import BuildFailed, find_cxx, find_nvcc
from rwkv_lab.runs.provenance import processor_name, usable_cores
from rwkv_lab.util.paths import REPOSITORY

PACKAGES = ("torch", "triton", "numpy", "scipy", "hydra-core", "omegaconf", "safetensors", "ninja", "pytest")
QUERY = "driver_version,name,compute_cap,memory.total,clocks.max.sm,clocks.max.mem,power.limit,mig.mode.current"
SANITIZED = """
import torch
from rwkv_lab.ops import wkv
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for B, T, C in ((1, 1, 1), (2, 70, 33), (1, 4500, 9)):
        w, u = -torch.rand(C, device="cuda"), torch.rand(C, device="cuda")
        k, v = (torch.randn(B, T, C, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2))
        y, state = wkv(w, u, k, v, backend="native")
        y.float().square().sum().backward()
torch.cuda.synchronize()
"""


def versions(step: Step) -> None:
    step.found(
        "system", python=platform.python_version(), kernel=platform.release(), libc=" ".join(platform.libc_ver())
    )
    step.found("processor", name=processor_name(), cores=usable_cores())
    for name in PACKAGES:
        try:
            step.found(name, version=importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            step.found(name, version="not installed")
    step.found("torch's CUDA", version=torch.version.cuda or "none")
    for name, find in (("nvcc", lambda: find_nvcc(torch.version.cuda)), ("C++ compiler", find_cxx)):
        try:
            step.found(name, found=str(find()))
        except BuildFailed as failure:
            step.check(name, step.rehearse and name == "nvcc", cause=str(failure))
    if step.rehearse:
        return
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        step.found(
            f"card {i}",
            name=properties.name,
            capability=f"{properties.major}.{properties.minor}",
            multiprocessors=properties.multi_processor_count,
            memory_gb=properties.total_memory / 1e9,
            l2_mb=properties.L2_cache_size / 1e6,
        )
    if shutil.which("nvidia-smi"):
        done = subprocess.run(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv"], capture_output=True, text=True)
        step.found("nvidia-smi", says=(done.stdout or done.stderr).strip())
    a = torch.randn(512, 512, device="cuda")
    step.check("a product runs", bool((a @ a).isfinite().all()))


def tests(step: Step) -> None:
    """The tests marked gpu; in a rehearsal a few of the same files on the CPU."""
    chosen = ["tests/ops/test_gpu.py", "-m", "not gpu"] if step.rehearse else ["tests", "-m", "gpu"]
    words = [sys.executable, "-m", "pytest", *chosen, "-p", "no:cacheprovider", "-rfE", "--tb=short"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            step.check(line.partition(" - ")[0], False, cause=line.partition(" - ")[2])
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    passed = re.search(r"(\d+) passed", last)
    step.check("tests", done.returncode == 0 and passed is not None, result=last)


def sanitizer(step: Step) -> None:
    """compute-sanitizer's memcheck and racecheck over small scans."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if step.rehearse or tool is None:
        step.found("compute-sanitizer", result="not on a CPU" if step.rehearse else "not installed")
        return
    for check in ("memcheck", "racecheck"):
        words = [tool, "--tool", check, "--kernel-regex", "kns=wkv", sys.executable, "-c", SANITIZED]
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
        print(done.stdout, done.stderr)
        last = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
        step.check(check, done.returncode == 0 and bool(last), result=(last or ["no summary"])[-1].strip("= "))
