"""``python -m rwkv_lab``, the same as ``rwkv-lab``."""

from rwkv_lab.cli.main import run

if __name__ == "__main__":
    run()
