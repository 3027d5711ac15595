"""rwkv_lab: a laboratory for small language models."""

from pathlib import Path

__version__ = "0.1.0"

# ``python -m rwkv_lab.generate`` and the like run the commands, which live in cli/.
__path__.append(str(Path(__file__).parent / "cli"))
