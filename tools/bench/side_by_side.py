"""Runs commands side by side within a time limit, each with its output in a file of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

#: Seconds between two looks at what is running.
_PAUSE = 0.05


def run_all(
    commands: dict[Path, list[str]],
    *,
    seconds: float,
    workers: int,
    folder: Path,
    environment: dict[str, str],
) -> dict[Path, int | None]:
    """Run commands, at most so many at a time, in the order given.

    Args:
        commands: by the file that gets a command's output and errors.
        seconds: for all together; what runs then is killed with its children, and what waits is
            never begun.
        workers: at least 1.
        folder, environment: that they run in.

    Returns:
        the exit status by file, None where the time was over.
    """
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    end = time.monotonic() + seconds
    waiting = list(commands.items())
    running: dict[Path, subprocess.Popen] = {}
    found: dict[Path, int | None] = dict.fromkeys(commands)
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < workers:
                log, command = waiting.pop(0)
                running[log] = _start(command, log, folder, environment)
            for log, child in list(running.items()):
                if child.poll() is not None:
                    found[log] = child.returncode
                    del running[log]
            time.sleep(_PAUSE)
    finally:
        for child in running.values():
            _kill(child)
    return found


def _start(
    command: list[str], log: Path, folder: Path, environment: dict[str, str]
) -> subprocess.Popen:
    with log.open("w") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _kill(child: subprocess.Popen) -> None:
    """Compilers and other children too."""
    with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
