"""Starts the STAND-IN for TensorFlow Serving (server.py) as a process of its own, and says how much memory it takes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SERVER = Path(__file__).with_name("server.py")


@dataclass(frozen=True)
class StandIn:
    """A running stand-in: its ports on 127.0.0.1, and its process. Memory is read from Linux's /proc."""

    grpc: int
    rest: int
    pid: int

    def resident_bytes(self) -> int:
        """Memory that the process holds now."""
        return self._status("VmRSS")

    def peak_bytes(self) -> int:
        """The most memory that the process has held since it started, or since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """Has `peak_bytes` count from now on."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5", encoding="utf-8")

    def _status(self, field: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


@contextlib.contextmanager
def running(models: Mapping[str, Path], log: Path) -> Iterator[StandIn]:
    """A stand-in that has warmed up; ends with the block.

    Args:
        models: Folder of versions by the model's name on the server.
        log: File for what the process writes on stderr. It runs in that file's folder.

    Raises:
        RuntimeError: It did not start, or ended with an error.
    """
    command = [sys.executable, str(SERVER), *(f"{name}={folder.resolve()}" for name, folder in models.items())]
    with log.open("w", encoding="utf-8") as errors, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=log.parent
    ) as process:  # fmt: skip
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError(f"Expected the stand-in's ports. Received: {log.read_text(encoding='utf-8')}")
            yield StandIn(**json.loads(line), pid=process.pid)
        finally:
            if process.stdin:
                process.stdin.close()  # which it waits for
    if process.wait(30):
        raise RuntimeError(f"Expected the stand-in to end well. Received: exit code {process.returncode}; {log}.")
