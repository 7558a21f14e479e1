"""A test set's result in a run's record: whose it may be, what it holds, what tables show."""

import json

import pytest
import torch

pytest.importorskip("mmdet")
from mmengine.config import Config  # noqa: E402

import collect_results  # noqa: E402
from collect import records, tables  # noqa: E402
from collect.published import Published  # noqa: E402
from collect.summary import summarize  # noqa: E402
from common.errors import UsageError  # noqa: E402
from common.schema import check_record, read_record  # noqa: E402
from common.tested import add_test, check_into  # noqa: E402
from record_samples import record, write  # noqa: E402

METRIC = "coco/bbox_mAP"


def loader(name):
    return dict(
        dataset=dict(ann_file=f"data/{name}/list.txt", data_prefix=dict(img=f"data/{name}"))
    )


@pytest.fixture
def cfg():
    loaders = dict(val_dataloader=loader("digits"), test_dataloader=loader("digits_test"))
    return Config(dict(model=dict(type="Any"), optim_wrapper=dict(type="OptimWrapper"), **loaders))


@pytest.fixture
def trained(tmp_path):
    """A finished record and its last checkpoint."""
    found = record()
    path = write(tmp_path / "records", found) / "net-fp32-seed0.json"
    # as RecordHook leaves it: the last point was saved before its validation
    curve = [found["curve"][0], {"epoch": 2, "iteration": 20, "loss": 1.0}]
    checkpoint = tmp_path / "epoch_2.pth"
    torch.save({"state_dict": {}, "daq_mm_record": {"curve": curve}}, checkpoint)
    return path, checkpoint


def test_a_test_goes_into_its_record(trained, cfg):
    path, checkpoint = trained
    check_into(path, cfg, checkpoint)
    add_test(path, {METRIC: 0.625, "coco/bbox_mAP_50": 0.75}, cfg, 4000, checkpoint)
    test = read_record(path)["test"]
    assert (test["value"], test["samples"], test["dataset"]) == (0.625, 4000, "digits_test")
    assert test["metrics"]["coco/bbox_mAP_50"] == 0.75
    assert len(test["checkpoint"]) == 64 and {"sha", "dirty"} <= set(test["commit"])
    assert read_record(path)["value"] == 0.5


def test_another_run_or_set_is_refused(trained, cfg, tmp_path):
    path, checkpoint = trained
    with pytest.raises(UsageError, match="record .* does not exist"):
        check_into(path.with_name("no.json"), cfg, checkpoint)
    other = tmp_path / "other.pth"
    curve = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5}]
    for state in ({"daq_mm_record": {"curve": curve}}, {}):
        torch.save({"state_dict": {}, **state}, other)
        with pytest.raises(UsageError, match="is not the last checkpoint of the run"):
            check_into(path, cfg, other)
    for changed in (record("daq"), record("daq", settings={"mcs_a": 1.0})):
        path.write_text(json.dumps(changed))
        with pytest.raises(UsageError, match="is of recipe 'daq' .* would test 'fp32'"):
            check_into(path, cfg, checkpoint)
    path.write_text(json.dumps(record(finished=False)))
    with pytest.raises(UsageError, match="not finished"):
        check_into(path, cfg, checkpoint)
    path.write_text(json.dumps(record()))
    cfg.test_dataloader = cfg.val_dataloader
    with pytest.raises(UsageError, match="test set is its validation set"):
        check_into(path, cfg, checkpoint)


def test_a_test_without_the_metric_leaves_the_record_alone(trained, cfg):
    path, checkpoint = trained
    before = path.read_text()
    for metrics in ({}, {METRIC: float("nan")}, {METRIC: 62.5}):
        with pytest.raises(UsageError, match="test value="):
            add_test(path, metrics, cfg, 4000, checkpoint)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ({"value": 0.5, "samples": 0, "metrics": {METRIC: 0.5}}, "samples=0"),
        ({"value": 0.5, "samples": 9, "metrics": {METRIC: 0.4}}, "is not its metric"),
        ({"value": 0.5, "samples": 9}, "is not its metric"),
        ({"value": 5, "samples": 9, "metrics": {METRIC: 5}}, "between 0 and 1"),
        ([1], "not a JSON object"),
    ],
)
def test_what_a_test_must_hold(test, words):
    with pytest.raises(ValueError, match=words):
        check_record(record(test=test))
    with pytest.raises(ValueError, match="its training is not finished"):
        check_record(record(finished=False, test={"value": 0.5}))


def with_test(recipe, seed, value):
    return record(recipe, seed, test={"value": value, "samples": 4000, "metrics": {METRIC: value}})


def test_tables_show_the_test_and_say_so(tmp_path):
    runs = [with_test("fp32", 0, 0.625), with_test("daq", 0, 0.5), record(network="other")]
    frame = records.read_records([write(tmp_path, *runs)])
    table = summarize(frame)
    assert list(table["mean"]) == [62.5, 50.0, 50.0]
    assert table.difference[1] == pytest.approx(-12.5)
    assert list(table.metric) == [f"{METRIC}, test of 4000"] * 2 + [METRIC]
    assert any(note.startswith("test of:") for note in tables.notes(table, Published([], [])))


def test_curves_are_those_of_the_validation(tmp_path):
    folder = write(tmp_path / "records", with_test("fp32", 0, 0.625), with_test("daq", 0, 0.5))
    arguments = [str(folder), "--out", str(tmp_path), "--figures"]
    arguments += ["--html", str(tmp_path / "report.html")]
    assert collect_results.main(arguments) == 0
    assert f">{METRIC}, points<" in (tmp_path / "accuracy_curves.svg").read_text()
    report = (tmp_path / "report.html").read_text()
    assert f"{METRIC}, test of 4000" in report and "larger than the validation set" in report


def test_runs_with_and_without_a_test_are_not_compared(tmp_path):
    write(tmp_path, with_test("fp32", 0, 0.625), record("daq"))
    with pytest.raises(UsageError, match='different metrics: .*; .*test of 4000.*"test": true'):
        records.read_records([tmp_path])
