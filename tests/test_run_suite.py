"""run_suite.py: what is run, retried, taken up again after a kill, and shared by two suites."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_suite
from common.errors import UsageError
from common.schema import label_of, read_record
from daq_mm import DAQConfig
from record_samples import record, write
from suite_runner import launch
from suite_runner.cells import Run, read_suite
from suite_runner.estimate import History, in_words, seconds_left

TESTS = Path(__file__).parent
STUB = TESTS / "stub_trainer.py"
STUB_TESTER = TESTS / "stub_tester.py"
DRIVER = (
    f"import sys; sys.path[:0] = [{str(TESTS.parent / 'tools')!r}]; import pathlib, run_suite;"
    "from suite_runner import launch;"
    f"launch.TRAIN = pathlib.Path({str(STUB)!r}); sys.exit(run_suite.main(sys.argv[1:]))"
)


def suite(tmp_path, text="", **cell):
    config = tmp_path / "net_fp32.py"
    config.write_text(f"# {text}\n")
    cell = {"config": str(config), "recipes": ["fp32", "daq"], "seeds": [0, 1], **cell}
    path = tmp_path / "suite.json"
    path.write_text(json.dumps({"cells": [cell]}))
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a suite in this process with the stub for a trainer; returns the exit status."""
    monkeypatch.setattr(launch, "TRAIN", STUB)
    monkeypatch.setattr(launch, "TEST", STUB_TESTER)

    def run(path, *arguments):
        return run_suite.main([str(path), "--records", str(tmp_path / "records"), *arguments])

    return run


def in_background(path, records):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(path), "--records", str(records), "--jobs", "2"],
        stdout=subprocess.PIPE,
        text=True,
    )


def traces(tmp_path):
    """For each run, the epochs at which its trainings began."""
    files = (tmp_path / "runs").glob("*/trace")
    return {file.parent.name: file.read_text().split() for file in files}


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_missing_is_listed(tmp_path, run, capsys):
    write(tmp_path / "records", record("fp32", 0), record("daq", 0, finished=False))
    assert run(suite(tmp_path), "--dry-run") == 0
    out = capsys.readouterr().out
    assert "4 runs, 1 finished before" in out
    assert out.split("\n")[1:4] == ["net-daq-seed0", "net-fp32-seed1", "net-daq-seed1"]


def test_all_is_run_once_and_nothing_twice(tmp_path, run, capsys):
    path = suite(tmp_path)
    assert run(path) == 0
    out = capsys.readouterr().out
    assert "[0/4] start net-fp32-seed0" in out
    assert "end   net-daq-seed1: coco/bbox_mAP 0.5000" in out
    assert "about 0 s left" in out
    assert run(path) == 0
    assert set(traces(tmp_path)) == {f"net-{r}-seed{s}" for r in ("fp32", "daq") for s in (0, 1)}
    assert all(begins == ["0"] for begins in traces(tmp_path).values())


def test_a_failed_run_does_not_stop_the_others(tmp_path, run, capsys):
    assert run(suite(tmp_path, "fail"), "--jobs", "1") == 1
    out = capsys.readouterr().out
    assert "net-daq-seed0: FAILED (status 1)" in out
    assert "error: it went wrong" in out
    assert "2 of 4 runs failed: net-daq-seed0, net-daq-seed1" in out
    assert read_record(tmp_path / "records/net-fp32-seed1.json")["finished"]


def test_a_failed_run_is_retried_from_its_checkpoint(tmp_path, run, capsys):
    assert run(suite(tmp_path, "fail"), "--retries", "1") == 0
    assert "attempt 2 of 2 comes later" in capsys.readouterr().out
    assert traces(tmp_path)["net-daq-seed0"] == ["0", "1"]
    assert run(suite(tmp_path, "broken", seeds=[2]), "--retries", "2") == 1
    assert len(traces(tmp_path)["net-daq-seed2"]) == 3


def test_settings_and_options_make_runs_of_their_own(tmp_path, run):
    cell = dict(recipes=["daq"], seeds=[0])
    assert run(suite(tmp_path, **cell)) == 0
    assert run(suite(tmp_path, **cell, settings={"mcs_lambda": 0.1})) == 0
    assert run(suite(tmp_path, **cell, settings={"include": ["backbone.*"]}, label="body")) == 0
    assert run(suite(tmp_path, **cell, options={"max_epochs": 2, "optim.lr": 0.1})) == 0
    names = {path.stem for path in (tmp_path / "records").glob("*.json")}
    assert names == {
        "net-daq-seed0",
        "net-daq-mcs_lambda=0.1-seed0",
        "net-daq-body-seed0",
        "net-daq-max_epochs=2,optim.lr=0.1-seed0",
    }
    settings = read_record(tmp_path / "records/net-daq-mcs_lambda=0.1-seed0.json")["settings"]
    assert settings == {"mcs_lambda": "0.1"}
    settings = read_record(tmp_path / "records/net-daq-body-seed0.json")["settings"]
    assert settings == {"include": "[backbone.*]"}


def what_was_tested(tmp_path):
    """For each run, what was tested."""
    files = (tmp_path / "runs").glob("*/tests")
    return {file.parent.name: file.read_text().splitlines() for file in files}


def test_what_is_trained_is_tested_where_the_cell_says_so(tmp_path, run, capsys):
    cell = dict(recipes=["daq"], seeds=[0], settings={"mcs_a": 1.0})
    assert run(suite(tmp_path, **cell)) == 0
    assert what_was_tested(tmp_path) == {}
    # what was trained before is not trained again
    cell["seeds"] = [0, 1]
    assert run(suite(tmp_path, test=True, **cell), "--dry-run") == 0
    assert run(suite(tmp_path, test=True, **cell), "--jobs", "1") == 0
    names = [f"net-daq-mcs_a=1.0-seed{seed}" for seed in (0, 1)]
    assert traces(tmp_path) == {name: ["0"] for name in names}
    assert what_was_tested(tmp_path) == {name: ["epoch_2.pth daq mcs_a=1.0"] for name in names}
    out = capsys.readouterr().out
    assert f"test  {names[0]}" in out and "0.5000, of the test 0.2500" in out
    assert run(suite(tmp_path, test=True, **cell)) == 0
    assert all(len(lines) == 1 for lines in what_was_tested(tmp_path).values())


def test_a_failed_test_is_told_and_made_up_for(tmp_path, run, capsys):
    cell = dict(test=True, recipes=["fp32"], seeds=[0])
    assert run(suite(tmp_path, "untestable", **cell)) == 1
    assert "FAILED (status 1)" in (out := capsys.readouterr().out)
    assert "error: it cannot be tested" in out
    assert run(suite(tmp_path, **cell)) == 0
    assert traces(tmp_path) == {"net-fp32-seed0": ["0"]}


def test_a_run_without_its_checkpoint_is_trained_again(tmp_path, run, capsys):
    cell = dict(test=True, recipes=["fp32"], seeds=[0])
    # a training that leaves none is no endless loop
    assert run(suite(tmp_path, "untested", **cell)) == 1
    assert "FAILED (status 0)" in capsys.readouterr().out
    assert run(suite(tmp_path, **cell)) == 0
    assert traces(tmp_path) == {"net-fp32-seed0": ["0", "4"]}


def test_a_start_is_made_once_and_before_the_runs(tmp_path, run, monkeypatch, capsys):
    maker, trace = tmp_path / "maker.py", tmp_path / "made"
    monkeypatch.setattr(launch, "PREPARE_START", maker)
    text = f"import sys; open({str(trace)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
    maker.write_text(f"{text}; sys.exit(1)")
    start = tmp_path / "start_fp32.py"
    start.write_text("")
    path = suite(tmp_path, start=str(start))
    assert run(path, "--dry-run") == 0
    assert not trace.exists()
    # the runs are started all the same: what they lack is theirs to tell
    assert run(path) == 0
    assert f"{start} could not be trained" in capsys.readouterr().out
    assert trace.read_text() == f"{start} --threads 1\n"
    assert run(path) == 0
    assert len(trace.read_text().splitlines()) == 1, "nothing is missing, so no start is needed"


def test_a_killed_training_goes_on(tmp_path, run):
    path = suite(tmp_path, "slow", recipes=["daq"], seeds=[0])
    process = in_background(path, tmp_path / "records")
    checkpoint = tmp_path / "runs/net-daq-seed0/checkpoint"
    wait_for(lambda: checkpoint.exists() and checkpoint.read_text() >= "1")
    [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "FAILED (status -9)" in out
    assert run(path) == 0
    begins = traces(tmp_path)["net-daq-seed0"]
    assert len(begins) == 2
    assert begins[1] != "0"


def test_a_killed_suite_goes_on_without_disturbing_what_it_left(tmp_path, run, capsys):
    path = suite(tmp_path, "slow", seeds=[0])
    process = in_background(path, tmp_path / "records")
    wait_for(lambda: len(traces(tmp_path)) == 2)
    process.kill()
    process.communicate()
    assert run(path) == 0
    out = capsys.readouterr().out
    assert "waiting for 2 runs that another suite or its rest is at" in out
    assert "done by another suite" in out
    assert all(begins == ["0"] for begins in traces(tmp_path).values())
    assert read_record(tmp_path / "records/net-daq-seed0.json")["finished"]


def test_a_terminated_suite_leaves_no_training_behind(tmp_path):
    path = suite(tmp_path, "slow", recipes=["daq"], seeds=[0])
    script = [sys.executable, str(TESTS.parent / "tools/run_suite.py"), str(path)]
    code = f"import sys, pathlib, runpy; sys.argv = {[*script[1:]]!r} + sys.argv[1:];"
    code += f"sys.path[:0] = [{str(TESTS.parent / 'tools')!r}];"
    code += f"from suite_runner import launch; launch.TRAIN = pathlib.Path({str(STUB)!r});"
    code += f"runpy.run_path({script[1]!r}, run_name='__main__')"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--records", str(tmp_path / "records")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: traces(tmp_path))
    process.terminate()
    assert "the same command goes on" in process.communicate(timeout=30)[1]
    lock = launch.claim(tmp_path / "runs/net-daq-seed0")
    assert lock is not None
    lock.close()


def test_two_suites_share_the_work(tmp_path):
    path = suite(tmp_path, "slow", seeds=[0, 1])
    both = [in_background(path, tmp_path / "records") for _ in range(2)]
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert len(traces(tmp_path)) == 4
    assert all(begins == ["0"] for begins in traces(tmp_path).values())
    for name in traces(tmp_path):
        assert read_record(tmp_path / f"records/{name}.json")["finished"]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({"epochs": 3}, "unknown keys ['epochs']"),
        ({"config": "gone.py"}, "names gone.py, which does not exist"),
        ({"start": "gone.py"}, "names gone.py, which does not exist"),
        ({"seeds": [0, 0]}, "two runs net-fp32-seed0; give one cell a 'label'"),
        ({"settings": [{}, {"a": 1}], "recipes": ["daq"], "label": "x"}, "'label' for 2 settings"),
        ({"settings": {"mcs_k": 1.1}}, "INT8 'settings' for the recipes fp32 or bf16"),
        ({"options": {"a": 1}, "label": ""}, "an empty 'label'"),
        ({"options": {"a": "x" * 200}}, "is too long; give the cell"),
    ],
)
def test_wrong_suites(tmp_path, cell, words):
    with pytest.raises(UsageError) as error:
        read_suite(suite(tmp_path, **cell))
    assert words in str(error.value)


def test_records_of_another_run_are_not_overwritten(tmp_path, run):
    write(tmp_path / "records", record("fp32", 0))
    path = tmp_path / "records/net-fp32-seed0.json"
    path.rename(path.with_name("net-daq-seed0.json"))
    with pytest.raises(UsageError, match="net-daq-seed0.json is of another run"):
        run(suite(tmp_path))
    path.with_name("net-daq-seed0.json").write_text("{")
    with pytest.raises(UsageError, match="is not valid JSON.*; move it away"):
        run(suite(tmp_path))
    with pytest.raises(UsageError, match="--jobs 0 must be at least 1"):
        run(suite(tmp_path), "--jobs", "0")


def test_a_list_of_settings_is_a_training_each(tmp_path):
    settings = [{}, {"mcs_k": 1.1, "mcs_a": 0.5}]
    path = suite(tmp_path, recipes=["paper"], seeds=[0], settings=settings, allow_reference=True)
    plain, changed = read_suite(path)
    assert (plain.name, plain.settings) == ("net-paper-seed0", ())
    assert changed.name == "net-paper-mcs_a=0.5,mcs_k=1.1-seed0"
    assert changed.settings == (("mcs_a", 0.5), ("mcs_k", 1.1))
    for run in (plain, changed):
        command = launch.command_of(run, tmp_path / "r.json", tmp_path, 1)
        assert ("--settings" in command) == (run is changed)
        assert command[-1] == "--allow-reference"


@pytest.mark.parametrize("path", sorted((TESTS.parent / "tools/suites").glob("*.json")))
def test_suites_of_the_repository_can_be_read_and_trained(path, monkeypatch):
    """DAQConfig takes every recipe and setting, and the reference is asked for where it serves."""
    monkeypatch.chdir(TESTS.parent)
    runs = read_suite(path)
    assert runs
    for run in runs:
        if run.recipe not in ("fp32", "bf16"):
            config = DAQConfig.from_recipe(run.recipe, **dict(run.settings))
            assert bool(config.without_kernels()) <= run.allow_reference


def test_max_epochs_shortens_the_schedule(tmp_path):
    options = read_suite(suite(tmp_path, options={"max_epochs": 2, "a.b": 1}))[0].config_options()
    assert options["train_cfg.max_epochs"] == 2
    assert options["param_scheduler.1.T_max"] == 2
    assert options["a.b"] == 1


def test_labels_say_what_differs():
    assert label_of({}, {}) == ""
    assert label_of({"mcs_lambda": 0.2}, {"a.b": [1, 2]}) == "a.b=1+2,mcs_lambda=0.2"
    assert label_of({"exclude": ["head.*"]}, {"ann": "x/y z"}) == "ann=x_y_z,exclude=head.any"


def test_time_left():
    history = History()
    assert history.expected(Run("a.py", "daq", 0)) is None
    history.add(Run("a.py", "fp32", 0), 100.0)
    assert history.expected(Run("b.py", "daq", 0)) == 100.0
    assert history.expected(Run("a.py", "daq", 0)) == 100.0
    history.add(Run("a.py", "daq", 1), 60.0)
    history.add(Run("a.py", "daq", 2, settings=(("mcs_k", 1.1),), label="mcs_k=1.1"), 5.0)
    assert history.expected(Run("a.py", "daq", 0)) == 60.0
    assert seconds_left([10.0], [5.0, 20.0], 2) == 25.0
    assert seconds_left([-3.0], [], 2) == 0.0
    assert (in_words(20), in_words(600), in_words(7200)) == (
        "about 20 s",
        "about 10 min",
        "about 2.0 h",
    )
