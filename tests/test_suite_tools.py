"""run_suite.py and collect_results.py: what is run, what is left out, what the tables say."""

import json

import pandas as pd
import pytest

import collect_results
import run_suite
from common.configs import UsageError
from common.record import read_record
from daq_mm import DAQConfig


def record(recipe="fp32", seed=0, value=0.5, seconds=1.0, finished=True, **fields):
    return {
        **dict(task="detection", network="net", dataset="digits", recipe=recipe, seed=seed),
        **dict(metric="coco/bbox_mAP", value=value, finished=finished),
        **dict(iteration_seconds=seconds, peak_memory_mib=100.0, curve=[]),
        **dict(commit={"sha": "0" * 40, "dirty": False}),
        **fields,
    }


def write(folder, *records):
    folder.mkdir(exist_ok=True)
    for r in records:
        (folder / f"{r['network']}-{r['recipe']}-seed{r['seed']}.json").write_text(json.dumps(r))
    return folder


@pytest.fixture
def records(tmp_path):
    runs = [record("fp32", s, v, 2.0) for s, v in enumerate((0.50, 0.52, 0.54))]
    runs += [record("daq", s, v, 1.0) for s, v in enumerate((0.51, 0.52, 0.53))]
    return write(tmp_path / "records", *runs)


def test_table_means_spreads_and_ratios(records):
    table = collect_results.summarize(collect_results.read_records([records]))
    assert list(table.recipe) == ["fp32", "daq"]
    daq = table.iloc[1]
    assert daq["n"] == 3
    assert daq["mean"] == pytest.approx(52.0)
    assert daq["std"] == pytest.approx(1.0)
    assert daq["difference"] == pytest.approx(0.0)
    assert daq["difference_std"] == pytest.approx(1.0)
    assert daq["times_fp32"] == pytest.approx(2.0)


def test_files_splice_and_check(records, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- t begin -->\nold\n<!-- t end -->\nb\n")
    arguments = [str(records), "--out", str(tmp_path), "--name", "t", "--splice", str(readme)]
    assert collect_results.main([*arguments, "--check"]) == 1
    assert collect_results.main(arguments) == 0
    assert collect_results.main([*arguments, "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("a\n")
    assert text.endswith("b\n")
    assert "52.00 ± 1.00" in text
    assert "old" not in text
    assert len(pd.read_csv(tmp_path / "t.csv")) == 2
    write(records, record("daq", 0, 0.9))
    assert collect_results.main([*arguments, "--check"]) == 1


def test_wrong_records_are_told(tmp_path, records, capsys):
    with pytest.raises(UsageError, match="no finished records"):
        collect_results.read_records([write(tmp_path / "none", record(finished=False))])
    assert "unfinished" in capsys.readouterr().err
    (records / "copy.json").write_text(json.dumps(record("daq", 1)))
    with pytest.raises(UsageError, match="two records of net, daq, seed 1"):
        collect_results.read_records([records])
    (records / "copy.json").write_text("{")
    with pytest.raises(UsageError, match="copy.json is not valid JSON"):
        collect_results.read_records([records])
    (records / "copy.json").write_text("{}")
    with pytest.raises(UsageError, match="lacks the fields"):
        collect_results.read_records([records])
    with pytest.raises(UsageError, match="does not exist"):
        collect_results.read_records([tmp_path / "gone.json"])


def suite(tmp_path, **cell):
    config = tmp_path / "net_fp32.py"
    config.write_text("model = dict()\n")
    cell = {"config": str(config), "recipes": ["fp32", "daq"], "seeds": [0, 1], **cell}
    path = tmp_path / "suite.json"
    path.write_text(json.dumps({"cells": [cell]}))
    return path


def test_suite_lists_what_is_missing(tmp_path, capsys):
    path = suite(tmp_path)
    folder = write(
        tmp_path / "records",
        record("fp32", 0, network="net"),
        record("daq", 0, network="net", finished=False),
    )
    assert run_suite.main([str(path), "--records", str(folder), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "4 runs, 1 finished before" in out
    assert out.split("\n")[1:4] == ["net-daq-seed0", "net-fp32-seed1", "net-daq-seed1"]


def test_settings_are_runs_of_their_own(tmp_path, capsys, monkeypatch):
    settings = [{}, {"mcs_k": 1.1, "mcs_a": 0.5}]
    path = suite(tmp_path, recipes=["paper"], seeds=[0], settings=settings, allow_reference=True)
    folder = tmp_path / "records"
    assert run_suite.main([str(path), "--records", str(folder), "--dry-run"]) == 0
    names = capsys.readouterr().out.split("\n")[1:3]
    assert names == ["net-paper-seed0", "net-paper-mcs_k=1.1-mcs_a=0.5-seed0"]
    commands = []
    monkeypatch.setattr(
        run_suite.subprocess,
        "run",
        lambda command, **_: commands.append(command) or run_suite.argparse.Namespace(returncode=0),
    )
    assert run_suite.main([str(path), "--records", str(folder)]) == 1  # they left no record
    assert "--settings" not in commands[0]
    assert commands[1][-4:] == ["--settings", "mcs_k=1.1", "mcs_a=0.5", "--allow-reference"]


@pytest.mark.parametrize("path", sorted((run_suite.TOOLS / "suites").glob("*.json")))
def test_suites_of_the_repository(path, monkeypatch):
    """Files exist, DAQConfig takes every setting, no run twice, the reference is asked for."""
    monkeypatch.chdir(run_suite.TOOLS.parent)
    runs = run_suite.read_suite(path)
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        if run.recipe not in ("fp32", "bf16"):
            config = DAQConfig.from_recipe(run.recipe, **dict(run.settings))
            assert bool(config.without_kernels()) <= run.allow_reference


def test_a_failed_run_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    path, folder = suite(tmp_path), tmp_path / "records"

    def execute(run, target, work_dir, threads):
        if run.recipe == "daq" and run.seed == 0:
            return 1, 0.1
        write(folder, record(run.recipe, run.seed, network="net"))
        return 0, 0.1

    monkeypatch.setattr(run_suite, "execute", execute)
    assert run_suite.main([str(path), "--records", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "net-daq-seed0: FAILED (status 1)" in out
    assert "1 of 4 runs failed: net-daq-seed0" in out
    assert read_record(folder / "net-daq-seed1.json")["finished"]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({"epochs": 3}, "unknown keys ['epochs']"),
        ({"config": "gone.py"}, "names gone.py, which does not exist"),
    ],
)
def test_wrong_suites(tmp_path, cell, words):
    with pytest.raises(UsageError) as error:
        run_suite.read_suite(suite(tmp_path, **cell))
    assert words in str(error.value)


def test_max_epochs_shortens_the_schedule(tmp_path):
    run = run_suite.read_suite(suite(tmp_path, options={"max_epochs": 2, "a.b": 1}))[0]
    arguments = run_suite.option_arguments(run)
    assert arguments[0] == "--cfg-options"
    assert "train_cfg.max_epochs=2" in arguments
    assert "param_scheduler.1.T_max=2" in arguments
    assert "a.b=1" in arguments
