"""What a finished run leaves: the full held-out evaluation and a sample of text."""

import math
from typing import Any

import torch

from rwkv_lab.inference import recurrent
from rwkv_lab.training.evaluate import evaluate_full
from rwkv_lab.training.trainer import NotFinite, Row, Training
from rwkv_lab.util.paths import write_atomic

SAMPLE_TEMPERATURE = 0.8


def measure(training: Training, row: Row) -> dict[str, Any]:
    """The manifest's result: losses in nats per token, bits per byte, and how the held-out text was read."""
    with training.resolved.autocast():
        full = evaluate_full(
            training.model,
            training.corpus.val or training.corpus.train,
            training.ctx_len,
            max(training.config.trainer.batch_size, 16),
            training.resolved.device,
            training.config.trainer.final_tokens,
        )
    if not math.isfinite(full.loss):
        raise NotFinite(f"the held-out loss became {full.loss} with the last update; try a lower schedule.lr_init")
    return {
        "train_loss": row["train_loss"],
        "val_loss": full.loss,
        # Token ids that came without text have no bytes to count; JSON has no NaN.
        "val_bpb": full.bpb if math.isfinite(full.bpb) else None,
        "fixed_val_loss": row["val_loss"],
        "fixed_val_bpb": row["val_bpb"],
        "tokens_per_second": training.progress.tokens / max(training.progress.seconds, 1e-9),
        "eval": full.method + ("" if training.corpus.val else " of the training text: there is no held-out split"),
    }


def sample(training: Training) -> str:
    """Generates text after a line break, writes sample.txt and returns it."""
    length = training.config.trainer.sample_length
    if not length:
        return ""
    tokenizer = training.corpus.tokenizer
    generator = torch.Generator(training.resolved.device).manual_seed(training.config.seed)
    with training.resolved.autocast():
        ids = recurrent.generate(
            training.model,
            tokenizer.encode("\n").tolist(),
            length,
            generator=generator,
            temperature=SAMPLE_TEMPERATURE,
        )
    text = tokenizer.decode(ids)
    write_atomic(training.folder / "sample.txt", text.encode())
    return text
