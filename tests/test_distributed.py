"""Two processes with gloo: ranks agree, the curve is that of one process, a death ends the run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(out, processes, *arguments, timeout=240):
    """Run the worker under torchrun (or alone, for one process)."""
    out.mkdir()
    command = [sys.executable]
    if processes > 1:
        # --standalone picks a free port by itself.
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(WORKER), str(out), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("distributed")
    for name, processes in (("one", 1), ("two", 2)):
        done = launch(root / name, processes)
        assert done.returncode == 0, done.stderr[-3000:]
    load = {"weights_only": False}
    return (
        torch.load(root / "one/rank0.pt", **load),
        [torch.load(root / f"two/rank{rank}.pt", **load) for rank in range(2)],
    )


def test_ranks_agree_on_weights_and_thresholds(runs):
    _, (first, second) = runs
    assert first["disagreements"] == second["disagreements"] == 0
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    assert any("threshold" in name for name in first["state"])


def test_thresholds_differ_without_agreement(runs):
    """The agreement does something: the ranks saw different gradients."""
    _, (first, second) = runs
    assert first["losses"] != second["losses"]


def test_loss_curve_is_that_of_the_joint_batch(runs):
    one, ranks = runs
    joint = torch.tensor([r["losses"] for r in ranks]).mean(0)
    alone = torch.tensor(one["losses"])
    assert alone[-4:].mean() < alone[:4].mean()
    # Each rank quantizes by its own extremes within a step; measured at 1% of the loss here.
    assert (joint - alone).abs().max() < 0.05 * alone.max()


def test_no_thread_of_the_process_group_is_left(runs):
    """A thread of gloo that drops a tensor while Python ends would abort a finished run."""
    for rank in runs[1]:
        assert any("gloo" in name for name in rank["threads"])
        assert not any("gloo" in name for name in rank["threads_after_leave"])


def test_a_dying_rank_ends_the_run(tmp_path):
    start = time.monotonic()
    done = launch(tmp_path / "dead", 2, "--dies-at", "3", timeout=180)
    assert done.returncode != 0
    assert "exitcode  : 13" in done.stderr or "exitcode: 13" in done.stderr
    assert time.monotonic() - start < 150
