"""The loop of a suite: start what is missing, watch, tell, retry; one thread, no shared state."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from pathlib import Path

from . import launch
from .cells import Run, finished_record
from .estimate import History, in_words, seconds_left


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a suite is run: folders, trainings at a time, threads each, further attempts."""

    records: Path
    work_dirs: Path
    jobs: int
    threads: int
    retries: int = 0
    report_seconds: float = 60.0
    poll_seconds: float = 0.2

    def record(self, run: Run) -> Path:
        """Where a run's record stands."""
        return self.records / f"{run.name}.json"

    def work_dir(self, run: Run) -> Path:
        """Where a run's checkpoints and logs stand."""
        return self.work_dirs / run.name


class Loop:
    """Train the runs that have no finished record.

    Args:
        runs: all runs of the suite; the finished ones serve the estimates.
        plan: how.
    """

    def __init__(self, runs: list[Run], plan: Plan) -> None:
        self.plan = plan
        self.history = History()
        self.waiting: deque[tuple[Run, int]] = deque()
        for run in runs:
            record = finished_record(run, plan.record(run))
            if record is None:
                self.waiting.append((run, 1))
            else:
                self.history.add(run, record["seconds"])
        self.total = len(self.waiting)
        self.done = 0
        self.running: list[launch.Job] = []
        self.failed: list[Run] = []
        self.told_elsewhere = False

    def run(self) -> list[Run]:
        """Train until nothing is missing or can be done; returns the runs that failed.

        However it ends, no training of it goes on.
        """
        told = time.monotonic()
        try:
            while self.waiting or self.running:
                self._start_what_can_be()
                self._collect_what_ended()
                if time.monotonic() - told >= self.plan.report_seconds:
                    told = time.monotonic()
                    self._tell_state()
                time.sleep(self.plan.poll_seconds)
        finally:
            launch.stop(self.running)
        return self.failed

    def _start_what_can_be(self) -> None:
        """Fill the free slots; a run that another suite is at goes to the end of the queue."""
        elsewhere = 0
        while len(self.running) < self.plan.jobs and elsewhere < len(self.waiting):
            run, attempt = self.waiting.popleft()
            lock = launch.claim(self.plan.work_dir(run))
            if lock is None:
                self.waiting.append((run, attempt))
                elsewhere += 1
                continue
            record = finished_record(run, self.plan.record(run))
            if record is not None:
                lock.close()
                self._finish(run, record, "done by another suite")
                continue
            expected = self.history.expected(run)
            job = launch.start(
                *(run, self.plan.record(run), self.plan.work_dir(run)),
                *(self.plan.threads, lock, attempt),
            )
            self.running.append(job)
            words = "" if expected is None else f", {in_words(expected)}"
            self._tell(f"test  {run.name}" if job.is_test else f"start {run.name}{words}")
        if elsewhere and not self.running and not self.told_elsewhere:
            self.told_elsewhere = True
            self._tell(f"waiting for {elsewhere} runs that another suite or its rest is at")

    def _collect_what_ended(self) -> None:
        for job in [job for job in self.running if job.process.poll() is not None]:
            self.running.remove(job)
            run, status = job.run, job.process.returncode
            record = finished_record(run, self.plan.record(run)) if status == 0 else None
            if record is not None:
                self._finish(run, record, f"{job.elapsed:.0f} s")
            elif status == 0 and not job.is_test and self._can_be_tested(run):
                self.waiting.appendleft((run, job.attempt))
            else:
                self._fail(job, status)

    def _can_be_tested(self, run: Run) -> bool:
        place = self.plan.record(run), self.plan.work_dir(run)
        return launch.checkpoint_to_test(run, *place) is not None

    def _finish(self, run: Run, record: dict, words: str) -> None:
        self.done += 1
        self.history.add(run, record["seconds"])
        value = f"{record['metric']} {record['value']:.4f}"
        if run.test:
            value += f", of the test {record['test']['value']:.4f}"
        self._tell(f"end   {run.name}: {value}, {words}; {self._left()}")

    def _fail(self, job: launch.Job, status: int) -> None:
        work_dir = self.plan.work_dir(job.run)
        words = f"FAILED (status {status}), see {work_dir / 'console.log'}"
        words += f": {launch.last_words(work_dir)}"
        if job.attempt <= self.plan.retries:
            self.waiting.append((job.run, job.attempt + 1))
            words += f"; attempt {job.attempt + 1} of {self.plan.retries + 1} comes later"
        else:
            self.done += 1
            self.failed.append(job.run)
        self._tell(f"end   {job.run.name}: {words}")

    def _tell_state(self) -> None:
        states = [
            f"{job.run.name} ({self._epochs(job.run)} epochs, {job.elapsed:.0f} s)"
            for job in self.running
        ]
        self._tell(f"now   {', '.join(states) or 'nothing here'}; {self._left()}")

    def _epochs(self, run: Run) -> int:
        return len(_unfinished(self.plan.record(run)).get("curve", []))

    def _left(self) -> str:
        """The time left, in words."""
        if not self.history.finished:
            return "time left unknown yet"
        running = [
            self.history.expected(job.run) - job.elapsed - self._spent_before(job)
            for job in self.running
        ]
        waiting = [self.history.expected(run) for run, _ in self.waiting]
        return f"{in_words(seconds_left(running, waiting, self.plan.jobs))} left"

    def _spent_before(self, job: launch.Job) -> float:
        """Seconds of a resumed run before it was started here."""
        return max(0.0, _unfinished(self.plan.record(job.run)).get("seconds", 0.0) - job.elapsed)

    def _tell(self, words: str) -> None:
        print(f"[{self.done}/{self.total}] {words}", flush=True)


def _unfinished(record: Path) -> dict:
    """What a run has recorded so far; empty before its first validation."""
    return json.loads(record.read_text()) if record.is_file() else {}
