"""``python -m rwkv_lab.cli.job_server FD``: the process that a sweep's jobs are forked from; see ``sweeps.server``."""

import importlib
import socket
import sys
from contextlib import suppress

from rwkv_lab.cli import train
from rwkv_lab.cli.main import leave
from rwkv_lab.sweeps.server import serve

PRELOADED = ("torch", "torch._dynamo", "hydra", "rwkv_lab.config.hydra", "rwkv_lab.training.session")


def main(argv: list[str]) -> int:
    """Serve until whoever asks is gone; in a forked process, do its job and return its exit code."""
    for name in PRELOADED:
        importlib.import_module(name)
    with suppress(BrokenPipeError, ConnectionResetError):
        request = serve(socket.socket(fileno=int(argv[0])))
        if request is not None:
            return train.run_composed(request["config"], request["overrides"])
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
