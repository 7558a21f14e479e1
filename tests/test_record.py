"""RecordHook: the record of a run that was killed anywhere is that of one that was not."""

import json

import pytest
import torch

pytest.importorskip("mmengine")

from mmengine.evaluator import BaseMetric, Evaluator  # noqa: E402

from common.record import RecordHook  # noqa: E402
from common.schema import read_record  # noqa: E402
from toy_runner import ToyData, needs_resume, toy_runner  # noqa: E402

IDENTITY = dict(task="classification", network="toy", dataset="toy", recipe="fp32", seed=0)
IDENTITY["metric"] = "accuracy/top1"


class Accuracy(BaseMetric):
    """Share of right answers; raises at the validation that `fail_at` names."""

    def __init__(self, fail_at=None, factor=1.0):
        super().__init__()
        self.fail_at, self.factor, self.validations = fail_at, factor, 0

    def process(self, data_batch, data_samples):
        right = torch.stack(list(data_samples)).argmax(1) == data_batch["labels"]
        self.results += right.float().tolist()

    def compute_metrics(self, results):
        self.validations += 1
        if self.validations == self.fail_at:
            raise KeyboardInterrupt
        return {"accuracy/top1": self.factor * sum(results) / len(results)}


def train(folder, metric, epochs=3, resume=False):
    hook = RecordHook(folder / "record.json", {**IDENTITY})
    runner = toy_runner(
        folder / "work",
        epochs=epochs,
        resume=resume,
        val_dataloader=dict(
            dataset=ToyData(),
            batch_size=8,
            collate_fn=dict(type="default_collate"),
            sampler=dict(type="DefaultSampler", shuffle=False),
        ),
        val_cfg=dict(),
        val_evaluator=Evaluator([metric]),
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
    )
    runner.register_hook(hook)
    runner.train()
    return read_record(folder / "record.json")


def comparable(record):
    return {name: record[name] for name in ("curve", "value", "final_metrics", "finished")}


@needs_resume
@pytest.mark.parametrize("epoch", [2, 3])
def test_a_validation_that_was_cut_off_is_made_up_for(tmp_path, epoch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = train(tmp_path / "whole", Accuracy())
    assert [point["epoch"] for point in whole["curve"]] == [1, 2, 3]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", Accuracy(fail_at=epoch))
    unfinished = json.loads((tmp_path / "cut/record.json").read_text())
    assert len(unfinished["curve"]) == epoch - 1
    resumed = train(tmp_path / "cut", Accuracy(), resume=True)
    assert comparable(resumed) == comparable(whole)
    assert resumed["seconds"] > unfinished["seconds"]
    assert resumed["iteration_seconds"] > 0


@needs_resume
def test_a_validation_that_was_recorded_is_not_repeated(tmp_path):
    train(tmp_path, Accuracy(), epochs=2)
    metric = Accuracy()
    train(tmp_path, metric, epochs=3, resume=True)
    assert metric.validations == 1


def test_a_metric_that_is_no_share_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'accuracy/top1' between 0 and 1"):
        train(tmp_path, Accuracy(factor=100.0))


def test_the_commit_is_that_of_the_start(tmp_path, monkeypatch):
    """A checkout that moves on while a run trains says nothing of the code that the run loaded."""
    shas = iter(["1" * 40])
    monkeypatch.setattr("common.record.commit", lambda: {"sha": next(shas), "dirty": False})
    record = train(tmp_path, Accuracy(), epochs=2)
    assert record["commit"] == {"sha": "1" * 40, "dirty": False}
