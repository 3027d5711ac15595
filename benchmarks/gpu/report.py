"""What the steps find, on disk at once: a line of JSON a finding, then one JSON and one Markdown table of all."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Finding = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """The surroundings of a step: where it writes, and whether it is a rehearsal on the CPU with tiny sizes."""

    name: str
    folder: Path
    rehearse: bool = False
    text: Path | None = None  # what the short study trains on; None: the built-in text

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    def found(self, what: str, **values: Any) -> None:
        """Writes a finding."""
        line = json.dumps({"what": what} | {key: _plain(value) for key, value in values.items()})
        with open(self.folder / f"{self.name}.jsonl", "a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def check(self, what: str, good: bool, **values: Any) -> None:
        """Writes a finding that is good or fails the step; the step goes on."""
        self.found(what, **values, good=bool(good))


def _plain(value: Any) -> Any:
    """A number with four digits; JSON has no NaN."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value


def findings(folder: Path, name: str) -> list[Finding]:
    """What a step has written so far; a line torn by its end does not count."""
    path = folder / f"{name}.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def write(folder: Path, steps: list[dict[str, Any]], head: str) -> None:
    """gpu.json and gpu.md in ``folder``, of the steps so far."""
    content = [step | {"findings": findings(folder, step["name"])} for step in steps]
    _replace(folder / "gpu.json", json.dumps({"machine": head, "steps": content}, indent=1) + "\n")
    _replace(folder / "gpu.md", markdown(content, head))


def markdown(steps: list[dict[str, Any]], head: str) -> str:
    """One table of all findings, the machine above it."""
    lines = [head, "", "| step | what | found |", "| --- | --- | --- |"]
    for step in steps:
        end = "" if step["result"] == "done" else f": {step['result']}"
        lines.append(f"| **{step['name']}** | {step['seconds']:.0f} s{end} | |")
        for finding in step["findings"]:
            shown = (f"{key} {_cell(value)}" for key, value in finding.items() if key not in ("what", "good"))
            mark = " **fails**" if finding.get("good") is False else ""
            lines.append(f"| | {_cell(finding['what'])} | {', '.join(shown)}{mark} |")
    return "\n".join([*lines, ""])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _replace(path: Path, content: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(content)
    os.replace(partial, path)
