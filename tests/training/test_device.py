"""What is set for a device: precision of products, determinism, the card a run goes on on."""

import os

import pytest
import torch

from rwkv_lab.training import device
from rwkv_lab.training.device import Resolved


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(device, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda chosen: None)
    yield
    device.apply(Resolved("cpu", "fp32", "reference", threads))


@pytest.mark.parametrize(
    ("where", "precision", "matmul"),
    [
        ("cpu", "fp32", "highest"),
        ("cpu", "bf16", "highest"),
        ("cuda", "fp32", "highest"),
        ("cuda", "tf32", "high"),
        ("cuda:1", "bf16", "high"),
    ],
)
def test_products_that_stay_in_float32(where, precision, matmul):
    device.apply(Resolved(where, precision, "reference", 1))
    assert torch.get_float32_matmul_precision() == matmul


def test_determinism_is_set_and_taken_back(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    device.apply(Resolved("cpu", "fp32", "reference", 1, deterministic=True))
    assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    device.apply(Resolved("cpu", "fp32", "reference", 1))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"device": "cuda", "name": "A"}, {"device": "cuda", "name": "B"}, True),
        ({"device": "cuda", "name": "A"}, {"device": "cuda", "name": "A"}, False),
        ({"device": "cpu", "name": "A"}, {"device": "cpu", "name": "B"}, False),
        ({}, {"device": "cuda", "name": "B"}, False),
    ],
)
def test_another_model_of_card_is_told(monkeypatch, before, now, told):
    monkeypatch.setattr(device, "hardware", lambda resolved: now)
    sentence = device.another_card(before, Resolved("cuda", "bf16", "native", 1))
    assert (sentence is not None) == told
    assert not told or ("A" in str(sentence) and "B" in str(sentence))


def test_the_capability_asked_for_is_the_chosen_cards(monkeypatch):
    capability = {"cuda:0": (9, 0), "cuda:1": (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: capability[str(name)])
    assert [device._precision("auto", name) for name in capability] == ["bf16", "fp32"]
