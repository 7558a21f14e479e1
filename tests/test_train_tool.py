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
from common.record import read_record  # noqa: E402
from daq_mm import ops  # noqa: E402

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
        (["--int8", "--settings", "mcs_k=9"], "DAQHook's config: mcs_k * mcs_a=7.2"),
        (["--int8", "--settings", "mcs_q=1"], "DAQHook's config: unknown setting mcs_q"),
        (["--recipe", "fp32", "--settings", "mcs_k=1.1"], "have no effect on recipe 'fp32'"),
        (["--settings", "mcs_k=1.1"], "--settings and --allow-reference need --int8 or --recipe"),
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


@pytest.mark.parametrize("recipe", ["fp32", "bf16", "paper", "daq"])
def test_recipes_set_and_read_back(recipe):
    cfg = load_config(CONFIG)
    set_recipe(cfg, "daq")
    set_recipe(cfg, recipe)
    assert recipe_of(cfg) == recipe
    hooks = [hook for hook in cfg.custom_hooks if hook["type"] == "DAQHook"]
    assert len(hooks) == (recipe in ("paper", "daq"))


def test_settings_and_reference_reach_the_hook_and_the_names(tiny_data):
    cfg = merge("--recipe", "paper", "--settings", "mcs_k=1.1", "mcs_a=0.5", "--allow-reference")
    config = dict(recipe="paper", mcs_k=1.1, mcs_a=0.5)
    assert cfg.custom_hooks[-1] == dict(type="DAQHook", config=config, allow_reference=True)
    assert recipe_of(cfg) == "paper, mcs_k=1.1, mcs_a=0.5"
    assert cfg.work_dir.endswith("fp32_paper-mcs_k=1.1-mcs_a=0.5")


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
def test_a_killed_run_ends_as_an_uninterrupted_one(tiny_data):
    if not ops.kernels_built("cpu")[0]:
        pytest.skip(ops.kernels_built("cpu")[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    whole, killed = tiny_data / "whole", tiny_data / "killed"
    subprocess.run(command(whole), check=True, env=environment, capture_output=True, timeout=900)
    process = subprocess.Popen(
        command(killed),
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
    subprocess.run(
        command(killed, "--resume"), check=True, env=environment, capture_output=True, timeout=900
    )
    expected, actual = final_state(whole), final_state(killed)
    assert expected["state_dict"].keys() == actual["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        assert torch.equal(value, actual["state_dict"][name]), name
    records = [read_record(folder / "record.json") for folder in (whole, killed)]
    assert all(record["finished"] for record in records)
    assert [p["loss"] for p in records[0]["curve"]] == [p["loss"] for p in records[1]["curve"]]
    assert records[0]["value"] == records[1]["value"]
    assert records[0]["backend"].startswith("cpu/")


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
