"""metric_of: every config can be recorded, and by the name that its metric really gives."""

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet not installed")

from daq_mm.compat import mend_mmaction  # noqa: E402

if not mend_mmaction():
    pytest.skip("mmaction not installed", allow_module_level=True)

from mmengine.evaluator import Evaluator  # noqa: E402
from mmengine.registry import METRICS as REGISTRY  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402

import train as train_tool  # noqa: E402
from common.configs import load_config  # noqa: E402
from common.errors import UsageError  # noqa: E402
from common.metrics import metric_of  # noqa: E402
from common.record import RecordHook  # noqa: E402
from common.schema import METRICS, read_record  # noqa: E402
from config_steps import CONFIGS, config_files  # noqa: E402
from toy_runner import ToyData, toy_runner  # noqa: E402

VOC = dict(type="VOCMetric", metric="mAP", eval_mode="11points")
EXPECTED = {
    "_coco_": "coco/bbox_mAP",
    "_voc_": "pascal_voc/mAP",
    "_kinetics400_": "acc/top1",
    "_ucf101_": "acc/top1",
    "_imagenet_": "accuracy/top1",
    "_cifar10_": "accuracy/top1",
}


@pytest.mark.parametrize("path", config_files(), ids=lambda path: path.stem)
def test_every_config_can_be_recorded(path):
    cfg = load_config(str(path))
    identity = train_tool.identity_of(cfg, train_tool.parse_args([str(path)]))
    assert identity["task"] == path.parent.name
    assert identity["metric"] in METRICS[identity["task"]]
    for part, metric in EXPECTED.items():
        if part in path.stem:
            assert identity["metric"] == metric
    assert identity["dataset"] not in ("", "unknown"), "runs on two data sets would share a row"


def test_the_digits_keep_the_metric_of_the_committed_records():
    seen = set()
    for file in sorted((CONFIGS.parent / "results/foundation/records").glob("*.json")):
        record = read_record(file)
        cfg = load_config(str(CONFIGS.parent / record["config"]))
        assert metric_of(cfg, record["task"]) == record["metric"]
        seen.add(record["task"])
    assert seen == {"detection", "video"}


def voc_results():
    """Two classes, one picture; one box is found exactly, one is missed: AP 1 and 0."""
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 60.0, 60.0]])
    return dict(
        gt_instances=dict(bboxes=boxes, labels=torch.tensor([0, 1])),
        ignored_instances=dict(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)),
        pred_instances=dict(bboxes=boxes[:1], labels=torch.tensor([0]), scores=torch.tensor([0.9])),
    )


def acc_results():
    return dict(gt_label=torch.tensor([0]), pred_score=torch.tensor([0.9, 0.1, 0.0]))


@pytest.mark.parametrize(
    ("evaluator", "scope", "sample", "task", "value"),
    [
        (VOC, "mmdet", voc_results, "detection", 0.5),
        (dict(type="mmdet.VOCMetric"), "mmengine", voc_results, "detection", 0.5),
        (dict(VOC, prefix="pascal_voc"), "mmdet", voc_results, "detection", 0.5),
        (
            dict(type="AccMetric", metric_options=dict(top_k_accuracy=dict(topk=(1, 3)))),
            *("mmaction", acc_results, "video", 1.0),
        ),
        (
            dict(type="daq_mm.models.Accuracy", topk=(1, 3)),
            *("mmengine", acc_results, "classification", 1.0),
        ),
    ],
)
def test_the_name_is_the_one_that_the_metric_gives(evaluator, scope, sample, task, value):
    import mmaction.evaluation  # noqa: F401
    import mmdet.evaluation  # noqa: F401

    init_default_scope(scope)
    metric = REGISTRY.build(evaluator)
    metric.dataset_meta = dict(classes=("a", "b"), dataset_type="VOC2007")
    metric.process({}, [sample()])
    found = metric.evaluate(1)
    name = metric_of({"val_evaluator": evaluator}, task)
    assert found[name] == pytest.approx(value)


class FixedMap:
    """Evaluator of a toy run: gives what VOCMetric gives."""

    def __init__(self, **metrics):
        self.metrics = metrics
        self.dataset_meta = None

    def process(self, data_samples, data_batch=None):
        pass

    def evaluate(self, size):
        return self.metrics


def record_of(tmp_path, evaluator):
    identity = dict(task="detection", network="toy", dataset="VOCdevkit", recipe="fp32", seed=0)
    identity["metric"] = metric_of({"val_evaluator": VOC}, "detection")
    runner = toy_runner(
        tmp_path / "work",
        epochs=2,
        val_dataloader=dict(
            dataset=ToyData(),
            batch_size=8,
            collate_fn=dict(type="default_collate"),
            sampler=dict(type="DefaultSampler", shuffle=False),
        ),
        val_cfg=dict(),
        val_evaluator=Evaluator([]),
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
    )
    runner.val_loop.evaluator = evaluator
    runner.register_hook(RecordHook(tmp_path / "record.json", identity))
    runner.train()
    return read_record(tmp_path / "record.json")


def test_a_voc_run_leaves_a_sound_record(tmp_path):
    record = record_of(tmp_path, FixedMap(**{"pascal_voc/mAP": 0.4, "pascal_voc/AP50": 0.4}))
    assert (record["metric"], record["value"], record["finished"]) == ("pascal_voc/mAP", 0.4, True)
    assert record["final_metrics"] == {"pascal_voc/mAP": 0.4, "pascal_voc/AP50": 0.4}


def test_a_validation_with_another_metric_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must give 'pascal_voc/mAP' between 0 and 1"):
        record_of(tmp_path, FixedMap(**{"coco/bbox_mAP": 0.4}))


@pytest.mark.parametrize(
    ("evaluator", "task", "words"),
    [
        (None, "detection", r"val_evaluator \(nothing\) gives none of the metrics"),
        ([], "video", "metrics of video: acc/top1"),
        (dict(type="CityScapesMetric"), "detection", r"\(CityScapesMetric\) gives none"),
        (dict(type="VOCMetric", metric="recall"), "detection", "gives none"),
        (dict(type="mmpretrain.Accuracy"), "classification", "daq_mm.models.Accuracy"),
        (dict(VOC, prefix="mine"), "detection", "mine/mAP, which is no metric of detection"),
        (dict(type="AccMetric"), "detection", "acc/top1, which is no metric of detection"),
        (
            [VOC, dict(type="CocoMetric", metric="bbox")],
            *("detection", "several metrics for a table, pascal_voc/mAP, coco/bbox_mAP; keep one"),
        ),
    ],
)
def test_what_cannot_be_recorded_is_told(evaluator, task, words):
    with pytest.raises(UsageError, match=words):
        metric_of({"val_evaluator": evaluator}, task)


def test_a_second_evaluator_that_no_table_knows_is_no_trouble():
    cfg = {"val_evaluator": [dict(type="DumpResults"), dict(type="CocoMetric", metric=["bbox"])]}
    assert metric_of(cfg, "detection") == "coco/bbox_mAP"
