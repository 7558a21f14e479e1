"""Helpers of test_configs: find the configs, build their models small, step them twice."""

import re
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, InstanceData

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PRECISIONS = ("fp32", "bf16", "int8", "int8_paper")
NAME = re.compile(rf"([a-z0-9]+(?:_[a-z0-9]+)+?)_({'|'.join(PRECISIONS)})")


def config_files() -> list[Path]:
    """Every config that a user may run, sorted."""
    return sorted(path for path in CONFIGS.glob("*/*.py") if path.parent.name != "_base_")


def split_name(path: Path) -> tuple[str, str]:
    """(stem of the FP32 twin without its precision, precision) of a config's file name."""
    match = NAME.fullmatch(path.stem)
    if match is None:
        raise ValueError(f"{path.name}: a config's name must end in one of {PRECISIONS}")
    return match[1], match[2]


def without_downloads(node: object) -> None:
    """Removes every pretrained checkpoint from a model's config, in place."""
    if isinstance(node, dict):
        if isinstance(node.get("pretrained"), str):
            node["pretrained"] = None
        init_cfg = node.get("init_cfg")
        if isinstance(init_cfg, dict) and init_cfg.get("type") == "Pretrained":
            node["init_cfg"] = None
        for value in node.values():
            without_downloads(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            without_downloads(value)


def daq_hook(cfg: Config) -> ConfigDict | None:
    """The DAQHook among a config's hooks, if any."""
    hooks = [hook for hook in cfg.get("custom_hooks", []) if hook["type"] == "DAQHook"]
    if len(hooks) > 1:
        raise ValueError(f"{cfg.filename}: DAQHook more than once")
    return hooks[0] if hooks else None


def build(cfg: Config) -> torch.nn.Module:
    """The config's model in training mode, with random weights and no SyncBN."""
    without_downloads(cfg.model)
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    for module in model.modules():
        if type(module).__name__ == "L2Norm":
            # Built with unwritten memory, which init_weights would fill.
            torch.nn.init.constant_(module.weight, module.scale)
    return model


def detection_batch(side: int, classes: int) -> dict:
    """One picture of `side` pixels with two boxes, as mmdet's collate function gives it."""
    from mmdet.structures import DetDataSample

    sample = DetDataSample(
        metainfo=dict(
            img_shape=(side, side),
            ori_shape=(side, side),
            pad_shape=(side, side),
            batch_input_shape=(side, side),
            scale_factor=(1.0, 1.0),
            img_id=0,
        )
    )
    boxes = torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.3, 0.4, 0.9, 0.95]]) * side
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, classes - 1]))
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    picture = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    return dict(inputs=[picture], data_samples=[sample])


def video_batch(shape: tuple[int, ...], classes: int) -> dict:
    """Two clips of `shape`, as mmaction's collate function gives them."""
    from mmaction.structures import ActionDataSample

    samples = [ActionDataSample().set_gt_label(label) for label in (0, classes - 1)]
    clips = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in samples]
    return dict(inputs=clips, data_samples=samples)


def picture_batch(side: int, classes: int) -> dict:
    """Two pictures of `side` pixels with labels, as the classifier's data loader gives them."""
    labels = [torch.tensor(label) for label in (0, classes - 1)]
    pictures = [torch.randint(0, 256, (3, side, side), dtype=torch.uint8) for _ in labels]
    return dict(inputs=pictures, data_samples=[BaseDataElement(gt_label=x) for x in labels])


def generated_batch(cfg: Config, name: str) -> dict:
    """A small batch in the format that the config's model expects."""
    if cfg.get("task") == "classification":
        # InceptionV3's and AlexNet's stems need the pictures' real size, or nearly
        side = 32 if "cifar10" in name else 96 if "imagenet" in name else 64
        return picture_batch(side, cfg.model.head.num_classes)
    if cfg.default_scope == "mmdet":
        head = cfg.model.get("bbox_head") or cfg.model.roi_head.bbox_head
        # SSD's anchors and its last, unpadded levels need the real size
        side = 300 if name.startswith("ssd300") else 96
        # SSDLite's last map has one pixel, of which batch norm needs two
        count = 2 if name.startswith("ssdlite") else 1
        batches = [detection_batch(side, head.num_classes) for _ in range(count)]
        return {key: [batch[key][0] for batch in batches] for key in batches[0]}
    if cfg.model.type == "Recognizer2D":
        head = cfg.model.cls_head
        frames = head.get("num_segments", 8) if head.type == "TSMHead" else 3
        clip = (frames, 3, 48, 48)
    elif cfg.model.backbone.type == "C3D":  # its linear layers need the real size
        clip = (1, 3, 16, 112, 112)
    else:
        clip = (1, 3, 8, 48, 48)
    return video_batch(clip, cfg.model.cls_head.num_classes)


def step_twice(model: torch.nn.Module, cfg: Config, batches: list[dict]) -> list[float]:
    """Two training steps by the config's optimizer; returns their losses.

    The learning rate is made small: stock rates expect warm-up and pretrained weights.
    """
    settings = ConfigDict(cfg.optim_wrapper)
    settings.setdefault("type", "OptimWrapper")
    settings.optimizer.lr = 1e-4
    wrapper = build_optim_wrapper(model, settings)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    losses = [float(model.train_step(batch, wrapper)["loss"]) for batch in batches]
    moved = [name for name, value in model.named_parameters() if not value.equal(before[name])]
    if not moved:
        raise AssertionError("two steps changed no parameter")
    return losses
