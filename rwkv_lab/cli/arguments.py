"""The argument parser of every command: its mistakes are one sentence."""

import argparse
import re
from typing import NoReturn

from rwkv_lab.config.errors import UserError, nearest


class Arguments(argparse.ArgumentParser):
    """An ArgumentParser that raises ``UserError`` instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+): ", r"\1: ", message)
        found = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)$", message)
        if found:
            choices = [choice.strip(" '") for choice in found[2].split(",")]
            likely = nearest(found[1], choices)
            message = message[: found.start()] + f"{found[1]} is unknown{likely}: choose one of {', '.join(choices)}"
        if message.startswith("unrecognized arguments: -"):
            message += nearest(message.split()[2], self._option_string_actions)
        raise UserError(f"{message}; see {self.prog} --help")


MODEL = "run, .safetensors, original .pth, or Hugging Face folder of RwkvForCausalLM"


def add_model_options(parser: argparse.ArgumentParser, precision: str = "fp32") -> None:
    """Add the argument MODEL, --tokenizer, --device and --precision (shown default: ``precision``) to a command."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="tokenizer.json of a run or of Hugging Face (the one beside the weights)"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="where to run (auto)")
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16", "int8"],
        help=f"of matrix products; int8: matrices rounded to 8 bits, a scale a row ({precision})",
    )
