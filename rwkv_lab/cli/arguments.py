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
