"""Every config loads, builds and trains: twice on generated data, digits through real loaders."""

import math
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmengine", reason="mmengine not installed")
pytest.importorskip("mmdet", reason="mmdet not installed")

import daq_mm  # noqa: E402
from daq_mm.compat import mend_mmaction  # noqa: E402
from daq_mm.ops import kernels_built  # noqa: E402

if not mend_mmaction():
    pytest.skip("mmaction not installed", allow_module_level=True)

from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from config_steps import (  # noqa: E402
    CONFIGS,
    build,
    config_files,
    daq_hook,
    generated_batch,
    split_name,
    step_twice,
    without_downloads,
)

INT8_LAYERS = (daq_mm.DAQConv2d, daq_mm.DAQConv3d)
DIGITS = [path for path in config_files() if "_digits_" in path.stem]
# one network of each task goes through a whole Runner; and an SSD for its own predictions
WHOLE = [
    path
    for path in DIGITS
    if path.stem.startswith(("retinanet_r18", "ssdlite", "slowonly", "mobilenetv2", "tsn"))
]
STEPPED = [path for path in DIGITS if path not in WHOLE]
FULL_SIZE = [path for path in config_files() if path not in DIGITS]
# one FP32 config of each quick full-size model runs always; the rest takes minutes on a CPU
SLOW = (
    "_int8",
    "ssd300",
    "i3d",
    "r2plus1d",
    "c3d",
    "_kinetics400",
    "faster_rcnn_r50_fpn_coco",
    "_r50_fpn_voc",
    "ssdlite_mobilenetv2_coco",
    "vgg16_imagenet",
    "alexnet_imagenet",
    "tsm_mobilenetv2_ucf101",
)


def named(paths: list[Path], slow: tuple[str, ...] = ()) -> list:
    """Test parameters with the file's name as id; those that contain a word of `slow` marked."""
    return [
        pytest.param(
            path, id=path.stem, marks=[pytest.mark.slow] * any(word in path.stem for word in slow)
        )
        for path in paths
    ]


def without_hook(cfg: Config) -> dict:
    """The config as a dict, less the INT8 switch."""
    plain = cfg.to_dict()
    plain.pop("custom_imports", None)
    hooks = [hook for hook in plain.pop("custom_hooks", []) if hook["type"] != "DAQHook"]
    return {**plain, "custom_hooks": hooks}


@pytest.mark.parametrize("path", named(config_files()))
def test_twins_differ_by_the_precision_alone(path):
    twin, precision = split_name(path)
    fp32 = path.with_name(f"{twin}_fp32.py")
    assert fp32.is_file(), f"{path.name} has no FP32 twin"
    cfg, base = Config.fromfile(path), Config.fromfile(fp32)
    hook = daq_hook(cfg)
    assert (hook is not None) == precision.startswith("int8")
    if hook is not None:
        recipe = "paper" if precision == "int8_paper" else "daq"
        assert hook.config == dict(recipe=recipe)
        assert cfg.custom_imports == dict(imports=["daq_mm"])
    same, expected = without_hook(cfg), without_hook(base)
    if precision == "bf16":
        assert same["optim_wrapper"].pop("type") == "daq_mm.amp.BF16OptimWrapper"
        expected["optim_wrapper"].pop("type")
    assert same == expected


def test_pretrained_weights_can_be_switched_off():
    cfg = Config.fromfile(CONFIGS / "detection" / "retinanet_r50_fpn_coco_fp32.py")
    assert cfg.model.backbone.init_cfg.type == "Pretrained"
    without_downloads(cfg.model)
    assert cfg.model.backbone.init_cfg is None


@pytest.mark.parametrize("path", [*named(FULL_SIZE, SLOW), *named(STEPPED)])
def test_config_steps_twice(path):
    cfg = Config.fromfile(path)
    model = build(cfg)
    if hook := daq_hook(cfg):
        report = daq_mm.convert_model(model, hook.config)
        swapped = [m for m in model.modules() if isinstance(m, INT8_LAYERS)]
        assert len(swapped) == len(report.converted) > 3
    batch = generated_batch(cfg, path.stem)
    losses = step_twice(model, cfg, [batch, batch])
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    """A folder with tiny generated sets at data/, where the configs look for them."""
    sys.path.insert(0, str(CONFIGS.parent / "tools"))
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("decord", reason="decord not installed")
    from data_prep import classification, detection, shape_video, video

    root = tmp_path_factory.mktemp("root")
    counts = dict(train=48, val=12)
    detection.prepare(root / "data/digits_detection", seed=0, counts=counts, side=96)
    video.prepare(root / "data/digits_video", seed=0, counts=counts, side=56, frames=16)
    shape_video.prepare(root / "data/digits_shape_video", seed=0, counts=counts, side=56, frames=12)
    classification.prepare(root / "data/digits_classification", seed=0, counts=counts, side=64)
    return root


@pytest.mark.parametrize("path", named(WHOLE))
def test_digits_config_trains_and_validates(path, data_root, tmp_path, monkeypatch):
    """A whole Runner: real files, real loaders, two or three steps, validation, a checkpoint."""
    monkeypatch.chdir(data_root)
    cfg = Config.fromfile(path)
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = path.stem
    cfg.visualizer.name = path.stem  # mmengine keeps one visualizer a name, and its first folder
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.optim_wrapper.optimizer.lr = 1e-3
    if cfg.default_scope == "mmdet":
        cfg.model.test_cfg.score_thr = 0.0  # so that an untrained model detects something
    if hook := daq_hook(cfg):
        hook.allow_reference = not kernels_built("cpu")[0]
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 48 // cfg.train_dataloader.batch_size
    swapped = [m for m in runner.model.modules() if isinstance(m, INT8_LAYERS)]
    assert bool(swapped) == (hook is not None)
    assert all(value.isfinite().all() for value in runner.model.parameters())
    scalars = runner.message_hub.log_scalars
    assert math.isfinite(scalars["train/loss"].current())
    metrics = dict(mmdet="coco/bbox_mAP", mmaction="acc/top1", mmengine="accuracy/top1")
    assert f"val/{metrics[cfg.default_scope]}" in scalars
    assert (tmp_path / "epoch_1.pth").is_file()
    (tmp_path / "epoch_1.pth").unlink()  # the largest thing that tests write
