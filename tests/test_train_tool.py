"""tools/train.py and tools/test.py as a user runs them: mistakes, and a run that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")
import train as train_tool  # noqa: E402
from common.configs import UsageError, load_config, recipe_of, set_recipe  # noqa: E402
from common.schema import read_record  # noqa: E402
from daq_mm import ops  # noqa: E402
from suite_runner import launch  # noqa: E402
from suite_runner.cells import read_suite  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs/detection/retinanet_r18_fpn_digits_fp32.py")


def merge(*arguments):
    return train_tool.merge_args(train_tool.parse_args([CONFIG, *arguments]))


@pytest.fixture
def tiny_data(tmp_path, monkeypatch):
    """A tiny generated detection set at data/ of an empty working directory."""
    from data_prep import detection

    monkeypatch.chdir(tmp_path)
    counts = dict(train=24, val=8)
    detection.prepare(tmp_path / "data/digits_detection", seed=0, counts=counts, side=96)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--int8", "papr"], "recipe 'papr' is unknown; allowed: fp32, bf16, daq"),
        (["--threads", "0"], "--threads 0 must be at least 1"),
        ([], "does not exist; make the generated sets with `python tools/prepare_data.py all`"),
    ],
)
def test_mistakes_are_told_before_any_work(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        merge(*arguments)
    assert words in str(error.value)


def test_wrong_hook_settings_are_told(tiny_data):
    cfg = load_config(CONFIG)
    cfg.custom_hooks = [dict(type="DAQHook", config=dict(clip=3))]
    with pytest.raises(UsageError, match="DAQHook's config: unknown setting clip; allowed: recipe"):
        recipe_of(cfg)


@pytest.mark.parametrize(
    ("path", "words"),
    [("nowhere.py", "does not exist; give a .py file"), ("broken.py", "is not valid Python")],
)
def test_wrong_config_files(path, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("model = dict(\n")
    with pytest.raises(UsageError, match=words):
        load_config(path)


def test_a_base_file_is_not_a_config():
    with pytest.raises(UsageError, match="has no 'model'"):
        load_config(str(ROOT / "configs/_base_/int8.py"))


def test_damaged_and_foreign_checkpoints(tiny_data):
    good = tiny_data / "good.pth"
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, good)
    (tiny_data / "torn.pth").write_bytes(good.read_bytes()[:900])
    torch.save([1, 2], tiny_data / "foreign.pth")
    for name, words in (
        ("torn.pth", "is damaged"),
        ("foreign.pth", "has no 'state_dict'"),
        ("absent.pth", "does not exist"),
    ):
        with pytest.raises(UsageError, match=words):
            merge("--resume", str(tiny_data / name))
    assert merge("--resume", str(good)).load_from == str(good)


def test_resume_without_a_checkpoint_starts_anew(tiny_data):
    cfg = merge("--resume", "--work-dir", "nothing_here")
    assert not cfg.resume


def test_auto_resume_passes_over_a_torn_checkpoint(tiny_data, capsys):
    work = tiny_data / "work"
    work.mkdir()
    for epoch in (2, 9, 10):
        torch.save({"state_dict": {"w": torch.zeros(1000)}}, work / f"epoch_{epoch}.pth")
    newest = work / "epoch_10.pth"
    newest.write_bytes(newest.read_bytes()[:900])
    (work / "last_checkpoint").write_text(str(newest))
    cfg = merge("--resume", "--work-dir", str(work))
    assert cfg.load_from == str(work / "epoch_9.pth")
    assert "epoch_10.pth is damaged" in capsys.readouterr().err
    for name in ("epoch_2.pth", "epoch_9.pth"):
        (work / name).write_bytes(b"")
    assert not merge("--resume", "--work-dir", str(work)).resume
    assert "no sound checkpoint; starting anew" in capsys.readouterr().err


def identity(*arguments):
    args = train_tool.parse_args([CONFIG, *arguments])
    return train_tool.identity_of(train_tool.merge_args(args), args)


def test_identity_names_what_was_changed(tiny_data):
    plain = identity("--recipe", "paper", "--seed", "3")
    assert plain["task"] == "detection"
    assert plain["network"] == "retinanet_r18_fpn_digits"
    assert (plain["recipe"], plain["seed"], plain["label"]) == ("paper", 3, "")
    assert plain["settings"] == plain["options"] == {}
    changed = identity(
        *("--int8", "--settings", "mcs_lambda=0.2", "exclude=[neck.*]", "mcs_k=1.0"),
        *("--cfg-options", "train_cfg.max_epochs=2"),
    )
    assert changed["settings"] == {"mcs_lambda": 0.2, "exclude": ["neck.*"]}
    assert changed["options"] == {"train_cfg.max_epochs": 2}
    label = "exclude=neck.any,mcs_k=1.0,mcs_lambda=0.2,train_cfg.max_epochs=2"
    assert changed["label"] == label
    assert identity("--int8", "--settings", "mcs_k=1.1", "--label", "k")["label"] == "k"
    assert identity("--int8", "--channels-last")["label"] == "channels_last=True"


def test_autocast_goes_with_int8_or_stands_alone(tiny_data):
    assert identity("--amp")["recipe"] == "bf16"
    assert identity("--amp")["options"] == {}
    both = identity("--int8", "--amp")
    assert (both["recipe"], both["options"]) == ("daq", {"optim_wrapper.type": "BF16OptimWrapper"})
    assert merge("--int8", "--amp").optim_wrapper.type == "BF16OptimWrapper"
    with pytest.raises(UsageError, match="--amp contradicts --recipe fp32"):
        merge("--recipe", "fp32", "--amp")


def test_a_suite_hands_its_settings_over(tiny_data):
    suite = tiny_data / "suite.json"
    settings = {"exclude": ["neck.*", "bbox_head.*"], "convert_first": True, "mcs_lambda": 0.2}
    cell = dict(config=CONFIG, recipes=["daq"], seeds=[3], settings=settings, label="body")
    cell |= {"options": {"max_epochs": 2}, "allow_reference": True}
    suite.write_text(json.dumps({"cells": [cell]}))
    [run] = read_suite(suite)
    command = launch.command_of(run, tiny_data / "r.json", tiny_data / "work", 1)
    args = train_tool.parse_args(command[2:])
    cfg = train_tool.merge_args(args)
    assert cfg.custom_hooks[-1]["allow_reference"]
    found = train_tool.identity_of(cfg, args)
    assert found["settings"] == settings
    assert found["options"]["train_cfg.max_epochs"] == 2
    assert (found["label"], found["seed"], found["recipe"]) == ("body", 3, "daq")


def test_identity_takes_the_task_of_the_config(tiny_data):
    args = train_tool.parse_args([CONFIG])
    cfg = train_tool.merge_args(args)
    cfg.task = "classification"
    with pytest.raises(UsageError, match="coco/bbox_mAP, which is no metric of classification"):
        train_tool.identity_of(cfg, args)
    cfg.val_evaluator = dict(type="daq_mm.models.Accuracy")
    found = train_tool.identity_of(cfg, args)
    assert (found["task"], found["metric"]) == ("classification", "accuracy/top1")
    cfg.task = "speech"
    with pytest.raises(UsageError, match="task 'speech' is unknown; allowed: classification, det"):
        train_tool.identity_of(cfg, args)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "fp32", "--settings", "mcs_k=1"], "settings mcs_k are DAQHook's, and a run"),
        (["--int8", "--settings", "mcs=1"], "unknown setting mcs; allowed"),
        (["--int8", "--settings", "mcs_lambda=2"], "mcs_lambda=2.0 must be in"),
    ],
)
def test_wrong_settings(tiny_data, arguments, words):
    with pytest.raises(UsageError) as error:
        merge(*arguments)
    assert words in str(error.value)


@pytest.mark.parametrize("recipe", ["fp32", "bf16", "paper", "daq"])
def test_recipes_set_and_read_back(recipe):
    cfg = load_config(CONFIG)
    set_recipe(cfg, "daq")
    set_recipe(cfg, recipe)
    assert recipe_of(cfg) == recipe
    hooks = [hook for hook in cfg.custom_hooks if hook["type"] == "DAQHook"]
    assert len(hooks) == (recipe in ("paper", "daq"))


def test_stock_config_becomes_int8_by_one_switch(tiny_data):
    cfg = load_config("mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py")
    set_recipe(cfg, "daq")
    assert recipe_of(cfg) == "daq"


def command(work_dir, *arguments):
    return [
        *(sys.executable, str(ROOT / "tools/train.py"), CONFIG, "--int8", "--threads", "1"),
        *("--work-dir", str(work_dir), "--record", str(work_dir / "record.json")),
        *arguments,
        *("--cfg-options", "train_cfg.max_epochs=4", "default_hooks.logger.interval=1"),
    ]


def final_state(work_dir):
    return torch.load(work_dir / "epoch_4.pth", map_location="cpu", weights_only=False)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(), ("--channels-last",)], ids=["contiguous", "channels_last"])
def test_a_killed_run_ends_as_an_uninterrupted_one(tiny_data, layout):
    if not ops.kernels_built("cpu")[0]:
        pytest.skip(ops.kernels_built("cpu")[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    whole, killed = tiny_data / "whole", tiny_data / "killed"
    run = dict(check=True, env=environment, capture_output=True, timeout=900)
    subprocess.run(command(whole, *layout), **run)
    process = subprocess.Popen(
        command(killed, *layout),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 600
    while not (killed / "epoch_2.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.7)  # somewhere in the third epoch
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "epoch_4.pth").exists()
    subprocess.run(command(killed, *layout, "--resume"), **run)
    expected, actual = final_state(whole), final_state(killed)
    assert expected["state_dict"].keys() == actual["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        assert torch.equal(value, actual["state_dict"][name]), name
        assert value.stride() == actual["state_dict"][name].stride(), name
    assert expected["state_dict"]["backbone.conv1.weight"].stride(1) == (1 if layout else 49)
    records = [read_record(folder / "record.json") for folder in (whole, killed)]
    assert all(record["finished"] for record in records)
    assert [p["loss"] for p in records[0]["curve"]] == [p["loss"] for p in records[1]["curve"]]
    assert records[0]["value"] == records[1]["value"]
    assert records[0]["backend"].startswith("cpu/")


@pytest.mark.slow
def test_a_suite_goes_on_after_its_training_and_it_were_killed(tiny_data):
    if not ops.kernels_built("cpu")[0]:
        pytest.skip(ops.kernels_built("cpu")[1])
    suite, records = tiny_data / "suite.json", tiny_data / "records"
    cell = dict(config=CONFIG, recipes=["daq"], seeds=[0], settings={"mcs_lambda": 0.2})
    suite.write_text(json.dumps({"cells": [{**cell, "options": {"max_epochs": 2}}]}))
    name = "retinanet_r18_fpn_digits-daq-max_epochs=2,mcs_lambda=0.2-seed0"
    arguments = [
        *(sys.executable, str(ROOT / "tools/run_suite.py"), str(suite)),
        *("--records", str(records), "--jobs", "1"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    saved = tiny_data / f"runs/{name}/last_checkpoint"  # written after the checkpoint itself
    while not saved.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    os.kill(int(children[0]), signal.SIGKILL)
    process.wait()
    subprocess.run(arguments, check=True, env=environment, capture_output=True, timeout=900)
    found = read_record(records / f"{name}.json")
    assert found["finished"]
    assert [point["epoch"] for point in found["curve"]] == [1, 2]
    assert found["settings"] == {"mcs_lambda": 0.2}
    assert found["value"] == found["curve"][-1]["coco/bbox_mAP"]
    log = (tiny_data / f"runs/{name}/console.log").read_text()
    assert "resumed epoch: " in log


@pytest.mark.slow
def test_a_suite_tests_what_it_trained(tmp_path, monkeypatch):
    if not ops.kernels_built("cpu")[0]:
        pytest.skip(ops.kernels_built("cpu")[1])
    from data_prep import shape_video

    monkeypatch.chdir(tmp_path)
    size = dict(seed=0, side=56, frames=12)
    folder = tmp_path / "data/digits_shape_video"
    shape_video.prepare(folder, counts=dict(train=32, val=10), **size)
    suite, records = tmp_path / "suite.json", tmp_path / "records"
    cell = dict(config=str(ROOT / "configs/video/tsn_r18_digits_shape_fp32.py"), recipes=["daq"])
    cell |= dict(seeds=[0], settings={"mcs_a": 1.0}, options={"max_epochs": 1})
    suite.write_text(json.dumps({"cells": [{**cell, "test": True}]}))
    arguments = [
        *(sys.executable, str(ROOT / "tools/run_suite.py"), str(suite)),
        *("--records", str(records), "--jobs", "1"),
    ]
    run = dict(env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=900)
    done = subprocess.run(arguments, text=True, **run)
    assert done.returncode == 1
    assert "prepare_data.py all`" in done.stdout  # the test set is not there
    # the same clips under another name, so that the test must give the validation's value
    target = tmp_path / "data/digits_shape_video_test"
    target.mkdir()
    (target / "test").symlink_to(folder / "val")
    (target / "test.txt").write_text((folder / "val.txt").read_text())
    subprocess.run(arguments, check=True, **run)
    name = "tsn_r18_digits_shape-daq-max_epochs=1,mcs_a=1.0-seed0"
    found = read_record(records / f"{name}.json")
    assert found["settings"] == {"mcs_a": 1.0}
    assert (found["test"]["samples"], found["test"]["dataset"]) == (10, "digits_shape_video_test")
    assert found["test"]["value"] == pytest.approx(found["value"], abs=1e-6)
    assert (tmp_path / f"runs/{name}/console.log").read_text().count("Epoch(train)") > 0


@pytest.mark.slow
def test_test_tool_gives_the_metric_of_the_training(tmp_path, monkeypatch):
    if not ops.kernels_built("cpu")[0]:
        pytest.skip(ops.kernels_built("cpu")[1])
    from data_prep import video

    monkeypatch.chdir(tmp_path)
    counts = dict(train=24, val=12)
    video.prepare(tmp_path / "data/digits_video", seed=0, counts=counts, side=56, frames=16)
    config = str(ROOT / "configs/video/slowonly_r18_digits_fp32.py")
    work, out = tmp_path / "work", tmp_path / "metrics.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    steps = [
        [
            *("train.py", config, "--int8", "--threads", "1", "--work-dir", str(work)),
            *("--record", str(work / "record.json"), "--cfg-options", "train_cfg.max_epochs=1"),
        ],
        ["test.py", config, str(work / "epoch_1.pth"), "--recipe", "daq", "--out", str(out)],
    ]
    for tool, *arguments in steps:
        subprocess.run(
            [sys.executable, str(ROOT / "tools" / tool), *arguments],
            check=True,
            env=environment,
            capture_output=True,
            timeout=900,
        )
    record = read_record(work / "record.json")
    metrics = json.loads(out.read_text())
    assert metrics[record["metric"]] == pytest.approx(record["value"], abs=1e-6)
