"""The run in the hands of this process: its configuration and its directory. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_lab.config.schema import Config
from rwkv_lab.runs import provenance
from rwkv_lab.runs.store import RunHandle
from rwkv_lab.util.console import warn


@dataclass
class RunContext:
    """A checked configuration with the run directory that was taken for it."""

    config: Config
    claim: RunHandle  # the directory, what was found there, and its lock
    overrides: list[str]  # as typed

    @property
    def path(self) -> Path:
        return self.claim.path

    @property
    def manifest(self) -> dict[str, Any]:
        return self.claim.manifest

    @property
    def resuming(self) -> bool:
        """Return whether an earlier session has begun the run."""
        return self.claim.state == "resume"

    def fail(self, reason: str) -> None:
        """Record the failure of a run that has begun; if even that cannot be written, it stays interrupted.

        Of several processes on one run, the one with the lock writes.
        """
        if self.claim.lock is None or "status" not in self.manifest:
            return
        try:
            self.claim.record(status="failed", reason=reason, ended=provenance.now())
        except OSError as error:
            warn(f"the failure could not be recorded in {self.path}: {error.strerror}")
