"""One training's process, and the lock that keeps a second one out of its folder."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from .cells import Run, trained_record

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
PREPARE_START = TRAIN.with_name("prepare_start.py")
TEST = TRAIN.with_name("test.py")


@dataclasses.dataclass
class Job:
    """A training or its test that was started: process, start, and the number of the attempt."""

    run: Run
    process: subprocess.Popen
    start: float
    attempt: int
    is_test: bool = False

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start


def claim(work_dir: Path) -> IO | None:
    """The lock of a run's work folder; None while another process has it.

    The training inherits the lock: it stays taken for as long as the training or this process
    lives, so that the trainings of a killed suite are left alone by the next one.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    lock = open(work_dir / "lock", "a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def command_of(run: Run, record: Path, work_dir: Path, threads: int) -> list[str]:
    """The command line of a training that resumes what is in the work folder."""
    command = [
        *(sys.executable, str(TRAIN), run.config),
        *("--recipe", run.recipe, "--seed", str(run.seed), "--threads", str(threads)),
        *("--work-dir", str(work_dir), "--resume", "--record", str(record)),
        *("--label", run.label),
    ]
    return [*command, *_changes_of(run)]


def test_command_of(run: Run, record: Path, checkpoint: Path, threads: int) -> list[str]:
    """The command line that evaluates a trained run on its config's test set."""
    command = [
        *(sys.executable, str(TEST), run.config, str(checkpoint), "--recipe", run.recipe),
        *("--threads", str(threads), "--into", str(record)),
    ]
    return [*command, *_changes_of(run)]


def _changes_of(run: Run) -> list[str]:
    """What a cell changes in recipe and config, as both tools take it."""
    arguments: list[str] = []
    for flag, pairs in (
        ("--settings", dict(run.settings)),
        ("--cfg-options", run.config_options()),
    ):
        if pairs:
            arguments += [flag, *(f"{name}={_argument(value)}" for name, value in pairs.items())]
    return [*arguments, "--allow-reference"] if run.allow_reference else arguments


def checkpoint_to_test(run: Run, record: Path, work_dir: Path) -> Path | None:
    """The last checkpoint of a run that is trained and whose test is missing, else None.

    None too if the checkpoint is gone: the run is trained again then.
    """
    found = trained_record(run, record) if run.test else None
    if found is None or found["test"]:
        return None
    checkpoint = work_dir / f"epoch_{len(found['curve'])}.pth"
    return checkpoint if checkpoint.is_file() else None


def start(run: Run, record: Path, work_dir: Path, threads: int, lock: IO, attempt: int) -> Job:
    """Start a training, or the test of one that has ended; it takes the lock over."""
    checkpoint = checkpoint_to_test(run, record, work_dir)
    if checkpoint is None:
        command = command_of(run, record, work_dir, threads)
    else:
        command = test_command_of(run, record, checkpoint, threads)
    with lock, open(work_dir / "console.log", "a") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            pass_fds=(lock.fileno(),),
        )
    return Job(run, process, time.monotonic(), attempt, is_test=checkpoint is not None)


def prepare_start(config: str, threads: int) -> bool:
    """Make the weights that runs start from, unless they are there; whether that succeeded."""
    command = [sys.executable, str(PREPARE_START), config, "--threads", str(threads)]
    return subprocess.run(command, stdin=subprocess.DEVNULL).returncode == 0


def stop(jobs: list[Job], patience: float = 10) -> None:
    """End trainings; those that do not heed within `patience` seconds are killed."""
    for job in jobs:
        job.process.terminate()
    for job in jobs:
        try:
            job.process.wait(patience)
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()


def last_words(work_dir: Path) -> str:
    """The last line that a training wrote, for the report of its failure."""
    lines = (work_dir / "console.log").read_text(errors="replace").strip().splitlines()
    return lines[-1][-200:] if lines else "it wrote nothing"


def _argument(value: Any) -> str:
    """A value as mmengine's DictAction reads it back."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_argument, value))}]"
    return str(value)
