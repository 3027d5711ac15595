"""Run directories as the tests of this folder need them."""

from pathlib import Path

from rwkv_lab.runs.manifest import write_manifest

RESULT = {"val_loss": 1.5, "val_bpb": 2.25, "train_loss": 1.4, "tokens_per_second": 1234.0, "eval": "windows"}


def make_run(root: Path, study: str, name: str, status: str, **manifest: object) -> Path:
    folder = root / study / name
    folder.mkdir(parents=True)
    started = {"format": 1, "id": name[-8:], "started": "2026-01-01T00:00:00+00:00", "overrides": ["seed=1"]}
    write_manifest(folder, started | {"status": status} | manifest)
    seed = name.rsplit("-", 2)[1][1:]
    model = name.partition("-")[0]
    (folder / "config.yaml").write_text(
        f"seed: {seed}\nmodel:\n  name: {model}\n  n_layer: {2 + int(seed)}\ndata:\n  name: builtin\n"
        f"trainer:\n  log_every: {seed}\n"
    )
    return folder
