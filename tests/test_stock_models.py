"""Stock models of mmdet and mmaction, converted as they are, take a training step.

The same code converts them all; the list holds what is unusual: deformable convolutions, group
norm, shared heads, depthwise and grouped kernels, non-local blocks, two pathways, dilated stages.
"""

import math

import pytest

pytest.importorskip("mmdet", reason="mmdet not installed")

from daq_mm.compat import mend_mmaction  # noqa: E402

if not mend_mmaction():
    pytest.skip("mmaction not installed", allow_module_level=True)

import torch  # noqa: E402
from mmengine.hub import get_config  # noqa: E402
from mmengine.logging import MessageHub  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402

import daq_mm  # noqa: E402
from config_steps import build, detection_batch, video_batch  # noqa: E402
from daq_mm.convert import int8_layers  # noqa: E402

DETECTORS = [
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "atss/atss_r50_fpn_1x_coco.py",
    "gfl/gfl_r50_fpn_1x_coco.py",
    "yolox/yolox_tiny_8xb8-300e_coco.py",
    "yolof/yolof_r50-c5_8xb8-1x_coco.py",
    "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py",
    "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
    "rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
    "res2net/faster-rcnn_res2net-101_fpn_2x_coco.py",
    "tridentnet/tridentnet_r50-caffe_1x_coco.py",
]
RECOGNIZERS = [
    ("tsm/tsm_imagenet-pretrained-mobilenetv2_8xb16-1x1x8-100e_kinetics400-rgb.py", (8, 3, 64, 64)),
    (
        "tsm/tsm_imagenet-pretrained-r50-nl-gaussian_8xb16-1x1x8-50e_kinetics400-rgb.py",
        (8, 3, 64, 64),
    ),
    ("c3d/c3d_sports1m-pretrained_8xb30-16x1x1-45e_ucf101-rgb.py", (1, 3, 16, 112, 112)),
    ("slowfast/slowfast_r50_8xb8-8x8x1-256e_kinetics400-rgb.py", (1, 3, 32, 64, 64)),
    (
        "csn/ircsn_ig65m-pretrained-r50-bnfrozen_8xb12-32x2x1-58e_kinetics400-rgb.py",
        (1, 3, 8, 64, 64),
    ),
    ("x3d/x3d_s_13x6x1_facebook-kinetics400-rgb.py", (1, 3, 13, 64, 64)),
]


def step(model, batch, channels_last=False):
    """Convert, take one step by a small learning rate, and check what must have moved."""
    for module in model.modules():
        if type(module).__name__ == "TridentConv":
            # It is built with unwritten memory, and its own init_cfg does not fit it.
            torch.nn.init.kaiming_uniform_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    # YOLOX's preprocessor asks the runner's hub how far the training is.
    MessageHub.get_current_instance().update_info("iter", 0)
    if channels_last:
        daq_mm.to_channels_last(model)
    report = daq_mm.convert_model(model)
    assert len(report.converted) > 5
    wrapper = OptimWrapper(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4)
    )
    losses = model.train_step(batch, wrapper)
    assert math.isfinite(float(losses["loss"]))
    trained = [layer for layer in int8_layers(model) if layer.gradient_quantizer.iteration > 0]
    assert trained
    assert all(layer.gradient_quantizer.threshold.isfinite().all() for layer in trained)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True], ids=["", "channels_last"])
@pytest.mark.parametrize("name", DETECTORS, ids=lambda name: name.partition("/")[2][:24])
def test_detector(name, channels_last):
    cfg = get_config(f"mmdet::{name}")
    cfg.default_scope = "mmdet"
    step(build(cfg), detection_batch(128, 80), channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True], ids=["", "channels_last"])
@pytest.mark.parametrize(("name", "clip"), RECOGNIZERS, ids=lambda v: str(v).partition("/")[2][:24])
def test_recognizer(name, clip, channels_last):
    cfg = get_config(f"mmaction::recognition/{name}")
    cfg.default_scope = "mmaction"
    classes = cfg.model.cls_head.num_classes
    step(build(cfg), video_batch(clip, classes), channels_last)


def test_a_head_that_calls_mmcv_on_feature_maps_is_not_laid_out_channels_last():
    cfg = get_config("mmdet::tood/tood_r50_fpn_1x_coco.py")
    cfg.default_scope = "mmdet"
    with pytest.raises(ValueError, match="does not go with the model's bbox_head: .*deform_conv2d"):
        daq_mm.to_channels_last(build(cfg))
