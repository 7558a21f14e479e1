"""ImageClassifier: a backbone and a head as one mmengine model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn import functional as F


class ImageClassifier(BaseModel):
    """Class scores of pictures.

    Args:
        backbone: config of a module that maps (N, 3, H, W) to a feature map (N, C, h, w), or to a
            sequence of them, of which the last one is used.
        head: config of a module that maps the feature map to logits (N, classes) and has
            `loss(logits, labels)`, such as `ClassificationHead`.
        data_preprocessor: config of mmengine's `ImgDataPreprocessor`, or None.
        init_cfg: initialization of the whole model, applied before that of its parts.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.head = MODELS.build(head)

    def forward(
        self,
        inputs: torch.Tensor,
        data_samples: Sequence[BaseDataElement] | None = None,
        mode: str = "tensor",
    ) -> torch.Tensor | dict[str, torch.Tensor] | list[BaseDataElement]:
        """Logits, losses or predictions.

        Args:
            inputs: (N, 3, H, W) float.
            data_samples: one a picture with `gt_label`, an int64 scalar; needed for 'loss'.
            mode: 'tensor' gives logits (N, classes); 'loss' a dict of losses; 'predict' a sample a
                picture with `pred_score` (classes,), float32 probabilities.
        """
        features = self.backbone(inputs)
        logits = self.head(features if isinstance(features, torch.Tensor) else features[-1])
        if mode == "tensor":
            return logits
        if mode == "loss":
            labels = torch.stack([sample.gt_label for sample in data_samples])
            return self.head.loss(logits, labels)
        if mode == "predict":
            samples = data_samples or [BaseDataElement() for _ in logits]
            for sample, scores in zip(samples, logits.float().softmax(1)):
                sample.pred_score = scores
            return samples
        raise ValueError(f"mode={mode!r} is unknown; allowed: tensor, loss, predict")


class ClassificationHead(BaseModule):
    """Average pooling, hidden linear layers with dropout, and the linear classifier.

    Without hidden layers it is the head of ResNet, MobileNetV2 and Inception; with a pool of 6 or 7
    and two hidden layers of 4096 that of AlexNet and VGG.

    Args:
        in_channels: channels C of the feature map.
        num_classes: at least 2.
        pool_size: side of the pooled map, which is then flattened.
        hidden: widths of the hidden layers; dropout and a linear layer and ReLU each.
        dropout: probability of dropping a value before each linear layer.
        label_smoothing: of the cross entropy, in [0, 1).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        pool_size: int = 1,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if init_cfg is None:
            last = dict(type="Normal", name="classifier", std=0.01)
            init_cfg = dict(type="Kaiming", layer="Linear", mode="fan_in", override=last)
        super().__init__(init_cfg=init_cfg)
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes} must be at least 2")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.pool = nn.AdaptiveAvgPool2d(pool_size)
        widths = [in_channels * pool_size**2, *hidden]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:]):
            layers += [nn.Dropout(dropout), nn.Linear(before, after), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) to logits (N, classes)."""
        return self.classifier(self.dropout(self.hidden(self.pool(x).flatten(1))))

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cross entropy in float32; `labels` (N,) int64."""
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        return {"loss": loss}
