"""Weights that a config starts from: named before any work if they lack, exported, loaded whole."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")
from mmengine.config import Config  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402

import prepare_start  # noqa: E402
from common.errors import UsageError  # noqa: E402
from common.starts import check_starts, start_files  # noqa: E402
from daq_mm.compat import mend_mmaction  # noqa: E402
from record_samples import record  # noqa: E402

if not mend_mmaction():
    pytest.skip("mmaction not installed", allow_module_level=True)

from mmaction.registry import MODELS  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FINETUNE = CONFIGS / "video/tsm_mobilenetv2_digits_shape_finetune_fp32.py"
CLASSIFIER = CONFIGS / "classification/mobilenetv2_mmaction_digits_fp32.py"


def test_files_are_told_from_downloads():
    cfg = Config(
        dict(
            model=dict(
                backbone=dict(pretrained="torchvision://resnet50"),
                neck=[dict(init_cfg=dict(type="Pretrained", checkpoint="neck.pth"))],
                head=dict(pretrained=None, init_cfg=dict(type="Normal", checkpoint="no.pth")),
                teacher=dict(pretrained="https://example.org/x.pth"),
            ),
            load_from="folder/all.pth",
        )
    )
    assert start_files(cfg) == {
        "model.neck.0.init_cfg.checkpoint": Path("neck.pth"),
        "load_from": Path("folder/all.pth"),
    }


def test_a_missing_start_names_key_and_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(FINETUNE)
    command = f"prepare_start.py {CLASSIFIER.relative_to(CONFIGS.parent)}"
    with pytest.raises(UsageError, match="model.backbone.pretrained names .* does not exist") as e:
        check_starts(cfg)
    assert command in str(e.value)
    path = tmp_path / cfg.model.backbone.pretrained
    path.parent.mkdir(parents=True)
    torch.save({"w": torch.zeros(1000)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert check_starts(cfg) == {path.name: digest}
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UsageError, match="is damaged") as e:
        check_starts(cfg)
    assert command in str(e.value)


@pytest.fixture
def classifier(tmp_path):
    """A classifier with random statistics, and a checkpoint of it."""
    init_default_scope("mmengine")
    cfg = Config.fromfile(CLASSIFIER)
    model = MODELS.build(cfg.model)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_()
    path = tmp_path / "epoch_6.pth"
    torch.save({"state_dict": model.state_dict()}, path)
    return model, path


def test_the_exported_backbone_is_what_the_video_network_starts_from(classifier, tmp_path):
    model, checkpoint = classifier
    target = tmp_path / "start.pth"
    assert prepare_start.export_backbone(checkpoint, target) == len(model.backbone.state_dict())
    cfg = Config.fromfile(FINETUNE)
    init_default_scope("mmaction")
    cfg.model.backbone.pretrained = str(target)
    network = MODELS.build(cfg.model)
    network.init_weights()
    found = {name.replace(".net.", "."): v for name, v in network.backbone.state_dict().items()}
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(found.pop(name), value), name
    assert not found


def test_a_model_without_a_backbone_is_refused(tmp_path):
    torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match=r"has no weights named backbone\.\*"):
        prepare_start.export_backbone(tmp_path / "x.pth", tmp_path / "start.pth")
    assert not (tmp_path / "start.pth").exists()


def test_a_start_is_trained_once_in_fp32(classifier, tmp_path, monkeypatch, capsys):
    trained = []

    def train(arguments):
        trained.append(arguments)
        work = Path(arguments[arguments.index("--work-dir") + 1])
        work.mkdir()
        classifier[1].replace(work / "epoch_6.pth")
        done = record("fp32", 0, config=str(CLASSIFIER))
        Path(arguments[arguments.index("--record") + 1]).write_text(json.dumps(done))

    monkeypatch.setattr(prepare_start.train, "main", train)
    out = tmp_path / "starts"
    prepare_start.main([str(CLASSIFIER), "--out", str(out), "--threads", "1"])
    assert trained[0][:3] == [str(CLASSIFIER), "--recipe", "fp32"]
    start = out / "mobilenetv2_mmaction_digits.pth"
    made = start.read_bytes()
    prepare_start.main([str(CLASSIFIER), "--out", str(out)])
    assert "was there already" in capsys.readouterr().out
    start.unlink()  # killed between the training and the export
    prepare_start.main([str(CLASSIFIER), "--out", str(out)])
    assert len(trained) == 1
    assert start.stat().st_size == len(made)


def test_mistakes(tmp_path):
    with pytest.raises(UsageError, match="does not exist; give a .py file"):
        prepare_start.main(["nowhere_fp32.py", "--out", str(tmp_path)])
