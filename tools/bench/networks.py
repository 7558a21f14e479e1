"""Networks to benchmark, each with a random batch and its own loss; nothing is downloaded.

A network here is a module that takes a batch and returns the scalar loss, so that every training
mode drives every network alike. Classifiers are a backbone of mmdet or mmcv with a linear head
(ResNet-50 is that of `resnet.py` where mmdet is missing); detectors and recognizers are built from
mmdet's and mmaction's configs.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from daq_mm.ops.layout import channels_last_format

from .resnet import ResNet50
from .shapes import ConvShape, trace

Tensor = torch.Tensor
CLASSES = 1000
BOXES_PER_IMAGE = 7

_MMACTION = "mmaction::recognition"
#: Networks of mmdet and mmaction by name: a config, and what to change in its model.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "retinanet_r50": ("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py", {}),
    "faster_rcnn_r50": ("mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", {}),
    "slowonly_r50": (
        f"{_MMACTION}/slowonly/"
        "slowonly_imagenet-pretrained-r50_8xb16-8x8x1-steplr-150e_kinetics400-rgb.py",
        {},
    ),
    "r2plus1d_18": (
        f"{_MMACTION}/r2plus1d/r2plus1d_r34_8xb8-8x8x1-180e_kinetics400-rgb.py",
        {"backbone": {"depth": 18}},
    ),
}
#: Modules around operators of mmcv without a bfloat16 kernel; every mode runs them in float32.
_FLOAT32_MODULES = ("SingleRoIExtractor", "GenericRoIExtractor")
#: Modules whose outputs are predictions, by name: one-stage and proposal heads, video heads.
_HEADS = ("bbox_head", "rpn_head", "cls_head")
CLASSIFIERS = ("resnet50", "mobilenetv2", "vgg16")
NETWORKS = (*CLASSIFIERS, *CONFIGS)


@dataclass
class Network:
    """A module whose forward takes `batch(n, device)` and returns the loss.

    Attributes:
        module: in training mode, on the CPU, float32, freshly initialised.
        batch: makes a random batch of n samples: a tuple of arguments.
        source: whose code the module's layers are, for the record.
    """

    module: nn.Module
    batch: Callable[[int, torch.device], tuple]
    source: str = ""


class Classifier(nn.Module):
    """Backbone, global average pooling, linear layer, cross entropy."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss of images (N, 3, S, S) with labels (N,)."""
        features = self.backbone(images)
        if isinstance(features, (tuple, list)):
            features = features[-1]
        return F.cross_entropy(self.head(features.mean((2, 3))), labels)


class TaskLoss(nn.Module):
    """A detector's or recognizer's own losses, added up as mmengine does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, data_samples: list) -> Tensor:
        """Loss of preprocessed inputs with their data samples."""
        losses = self.model(inputs, data_samples, mode="loss")
        return self.model.parse_losses(losses)[0]


def build(name: str, *, size: int, frames: int = 8) -> Network:
    """Build a network by name or by the path of a config.

    Args:
        name: one of `NETWORKS`, a config's path, or 'mmdet::...' and 'mmaction::...'.
        size: side of the pictures in pixels.
        frames: frames of a clip, for video networks.

    Raises:
        ValueError: an unknown name. ImportError: a package that the network needs is missing.
    """
    if name not in NETWORKS and not name.endswith(".py"):
        raise ValueError(
            f"model={name!r} is unknown; allowed: {', '.join(NETWORKS)}, or a config's path"
        )
    with _quiet():
        if name in CLASSIFIERS:
            network = _build_classifier(name, size)
        else:
            config, changes = CONFIGS.get(name, (name, {}))
            network = _build_from_config(config, changes, size, frames)
    _wake_residual_branches(network.module)
    return network


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without mmengine's line a parameter on how it was initialised."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def _wake_residual_branches(module: nn.Module) -> None:
    """Give norm weights that were initialised to 0 a small value, as training would.

    With 0 the branch before them gets gradients of nothing but zeros, and data that easy can
    flatter a processor's speed.
    """
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() == 1 and not weight.any():
            nn.init.constant_(weight, 0.2)


def _import(module: str, network: str) -> Any:
    importlib.import_module("daq_mm")  # its mends make mmdet and mmaction importable
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the network {network} needs {module.partition('.')[0]}, which is not installed "
            f"completely ({error})"
        ) from error


def _build_classifier(name: str, size: int) -> Network:
    source = "mmdet"
    if name == "vgg16":
        vgg, source = _import("mmcv.cnn", name).VGG, "mmcv"
        backbone, channels = vgg(depth=16, out_indices=(4,)), 512
    elif name == "mobilenetv2":
        mobilenet = _import("mmdet.models", name).MobileNetV2
        backbone, channels = mobilenet(out_indices=(7,)), 1280
    else:
        (backbone, source), channels = _resnet50(), 2048
    backbone.init_weights()

    def batch(n: int, device: torch.device) -> tuple:
        labels = torch.randint(CLASSES, (n,), device=device)
        return torch.randn(n, 3, size, size, device=device), labels

    return Network(Classifier(backbone, channels).train(), batch, source)


def _resnet50() -> tuple[nn.Module, str]:
    """mmdet's, or where that cannot be imported the same in plain PyTorch; and which it is."""
    try:
        resnet = _import("mmdet.models", "resnet50").ResNet
    except ImportError as error:
        source = "tools/bench/resnet.py"
        print(f"{error}; {source} has the same layers and is used instead", file=sys.stderr)
        return ResNet50(), source
    return resnet(depth=50, norm_eval=False, out_indices=(3,)), "mmdet"


def _build_from_config(path: str, changes: dict, size: int, frames: int) -> Network:
    engine = _import("mmengine", path)
    if "::" in path:
        # First, because mmengine would have pip install a package that it does not find.
        _import(f"{path.partition('::')[0]}.models", path)
        config = _import("mmengine.hub", path).get_config(path)
    elif Path(path).is_file():
        config = engine.Config.fromfile(path)
    else:
        raise ValueError(f"model={path!r}: there is no such config file")
    scope = config.get("default_scope")
    if scope not in ("mmdet", "mmaction"):
        raise ValueError(
            f"model={path!r} has default_scope={scope!r}; allowed: 'mmdet', 'mmaction'"
        )
    _import(f"{scope}.models", path)
    config.merge_from_dict({"model": changes})
    model_config = without_checkpoints(config.model.to_dict())
    model_config.pop("data_preprocessor", None)  # batches are made as it would leave them
    registry = _import(f"{scope}.registry", path).MODELS
    with engine.registry.DefaultScope.overwrite_default_scope(scope):
        model = registry.build(engine.ConfigDict(model_config))
        model.init_weights()
    # One process has nothing to synchronize, and SyncBN refuses to train on a CPU.
    model = _import("mmengine.model", path).revert_sync_batchnorm(model)
    if scope == "mmdet":
        batch = _detection_batch(model_config, size)
    else:
        batch = _video_batch(model_config, size, frames)
    _keep_float32_where_needed(model)
    return Network(TaskLoss(model).train(), batch, scope)


def _keep_float32_where_needed(model: nn.Module) -> None:
    """Let bfloat16 autocast train what mmcv and NumPy have no bfloat16 for, in every mode alike.

    Predictions leave the heads in float32, as the losses compute in it anyhow: proposals go
    through mmcv's non-maximum suppression, and scores through NumPy for the logged accuracy.
    """
    for name, layer in model.named_modules():
        if name in _HEADS:
            layer.register_forward_hook(lambda layer, inputs, output: _to_float32(output))
        elif type(layer).__name__ in _FLOAT32_MODULES:
            layer.register_forward_pre_hook(lambda layer, inputs: _to_float32(inputs))


def _to_float32(values: Any) -> Any:
    """Floating tensors in nested tuples and lists as float32."""
    if isinstance(values, (tuple, list)):
        return type(values)(_to_float32(value) for value in values)
    is_float = isinstance(values, Tensor) and values.is_floating_point()
    return values.float() if is_float else values


def without_checkpoints(config: Any) -> Any:
    """A model's config with every pre-trained checkpoint switched off."""
    if isinstance(config, dict):
        cleaned = {name: without_checkpoints(value) for name, value in config.items()}
        if isinstance(cleaned.get("pretrained"), str):
            cleaned["pretrained"] = None
        init = cleaned.get("init_cfg")
        if isinstance(init, dict) and init.get("type") == "Pretrained":
            cleaned["init_cfg"] = None
        return cleaned
    if isinstance(config, (list, tuple)):
        return type(config)(without_checkpoints(value) for value in config)
    return config


def _classes(config: Any) -> int:
    """The first num_classes anywhere in a model's config."""
    if isinstance(config, dict):
        if isinstance(config.get("num_classes"), int):
            return config["num_classes"]
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        return next(filter(None, map(_classes, config)), 0)
    return 0


def _detection_batch(config: dict, size: int) -> Callable:
    classes = _classes(config)

    def batch(n: int, device: torch.device) -> tuple:
        from mmdet.structures import DetDataSample
        from mmengine.structures import InstanceData

        samples = []
        for index in range(n):
            corner = torch.rand(BOXES_PER_IMAGE, 2, device=device) * size * 0.6
            side = (0.08 + 0.3 * torch.rand(BOXES_PER_IMAGE, 2, device=device)) * size
            labels = torch.randint(classes, (BOXES_PER_IMAGE,), device=device)
            sample = DetDataSample(
                metainfo={
                    "img_id": index,
                    "img_shape": (size, size),
                    "ori_shape": (size, size),
                    "pad_shape": (size, size),
                    "batch_input_shape": (size, size),
                    "scale_factor": (1.0, 1.0),
                }
            )
            boxes = torch.cat([corner, corner + side], 1)
            sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
            samples.append(sample)
        return torch.randn(n, 3, size, size, device=device), samples

    return batch


def _video_batch(config: dict, size: int, frames: int) -> Callable:
    classes = _classes(config)
    is_2d = config["type"] == "Recognizer2D"

    def batch(n: int, device: torch.device) -> tuple:
        from mmaction.structures import ActionDataSample

        samples = [ActionDataSample() for _ in range(n)]
        for sample in samples:
            sample.set_gt_label(int(torch.randint(classes, ())))
        # 2D: (N, segments, C, H, W); 3D: (N, clips, C, T, H, W).
        shape = (n, frames, 3, size, size) if is_2d else (n, 1, 3, frames, size, size)
        return torch.randn(shape, device=device), [sample.to(device) for sample in samples]

    return batch


def inputs_to_memory_format(batch: tuple, channels_last: bool) -> tuple:
    """The batch with its pictures or clips channels-last."""
    images, *rest = batch
    if not channels_last or images.dim() == 5:  # segments of 2D networks are folded later
        return batch
    if images.dim() == 4:
        return (images.contiguous(memory_format=channels_last_format(2)), *rest)
    clips = images.flatten(0, 1).contiguous(memory_format=channels_last_format(3))
    return (clips.unflatten(0, images.shape[:2]), *rest)


#: Shape sets: network, side of the pictures in pixels, frames.
_TRACED = {
    "resnet50": ("resnet50", 224),
    "mobilenetv2": ("mobilenetv2", 224),
    "vgg16": ("vgg16", 224),
    "slowonly_r50": ("slowonly_r50", 112),
}
SHAPE_SETS = (*_TRACED, "retinanet_head")
#: The least batch that batch norm accepts where a feature map is one pixel.
_TRACE_BATCH = 2


def shape_set(name: str, *, batch: int) -> list[ConvShape]:
    """The distinct convolutions of a built-in set, with multiplicities.

    Args:
        name: one of `SHAPE_SETS`; pictures of 224 pixels, slowonly_r50 clips of 8 frames of
            112, retinanet_head the levels P3..P7 of pictures of 512.
        batch: batch size.

    Raises:
        ValueError: an unknown name. ImportError: a package that the network needs is missing.
    """
    if name == "retinanet_head":
        return _retinanet_head(batch)
    if name not in _TRACED:
        raise ValueError(f"set={name!r} is unknown; allowed: {', '.join(SHAPE_SETS)}")
    network_name, size = _TRACED[name]
    network = build(network_name, size=size)
    arguments = network.batch(_TRACE_BATCH, torch.device("cpu"))
    return trace(network.module, lambda: network.module(*arguments), batch=batch)


def _retinanet_head(batch: int) -> list[ConvShape]:
    head = build("retinanet_r50", size=512).module.model.bbox_head
    levels = [torch.randn(1, 256, side, side, requires_grad=True) for side in (64, 32, 16, 8, 4)]
    return trace(head, lambda: head(levels), batch=batch)
