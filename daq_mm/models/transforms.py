"""Transforms of pictures that mmcv lacks, for the pipelines of image classification."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import BaseDataElement


class RandomResizedCrop(BaseTransform):
    """A random part of the picture, resized to a square: ImageNet's training crop.

    Args:
        scale: side of the result in pixels.
        area: bounds of the crop's share of the picture's area.
        ratio: bounds of the crop's width over height; drawn uniformly in its logarithm.
    """

    attempts = 10

    def __init__(
        self,
        scale: int,
        area: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        self.scale, self.area, self.ratio = scale, area, ratio

    def transform(self, results: dict) -> dict:
        """Replaces `img` (H, W, 3) and its `img_shape`."""
        x, y, w, h = self._box(*results["img"].shape[:2])
        crop = results["img"][y : y + h, x : x + w]
        mode = cv2.INTER_AREA if min(w, h) > self.scale else cv2.INTER_LINEAR
        results["img"] = cv2.resize(crop, (self.scale, self.scale), interpolation=mode)
        results["img_shape"] = (self.scale, self.scale)
        return results

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """x, y, w, h; the largest central square where no draw fits."""
        for _ in range(self.attempts):
            area = height * width * np.random.uniform(*self.area)
            ratio = np.exp(np.random.uniform(*np.log(self.ratio)))
            w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                x = np.random.randint(width - w + 1)
                return x, np.random.randint(height - h + 1), w, h
        side = min(height, width)
        return (width - side) // 2, (height - side) // 2, side, side


class PaddedRandomCrop(BaseTransform):
    """A crop of the picture's own size after padding: a shift by at most `padding` pixels.

    Args:
        padding: pixels on each side.
        mode: 'constant' (black, as is usual for CIFAR) or 'reflect'.
    """

    def __init__(self, padding: int, mode: str = "constant") -> None:
        if mode not in ("constant", "reflect"):
            raise ValueError(f"mode={mode!r} is unknown; allowed: constant, reflect")
        self.padding, self.mode = padding, mode

    def transform(self, results: dict) -> dict:
        """Replaces `img` (H, W, 3)."""
        height, width = results["img"].shape[:2]
        edges = ((self.padding, self.padding), (self.padding, self.padding), (0, 0))
        padded = np.pad(results["img"], edges, mode=self.mode)
        y, x = np.random.randint(0, 2 * self.padding + 1, 2)
        results["img"] = padded[y : y + height, x : x + width]
        return results


class PackImage(BaseTransform):
    """The end of a pipeline: what `ImageClassifier` takes.

    Gives `inputs`, a (3, H, W) uint8 tensor, and `data_samples`, an element with the label.
    """

    def transform(self, results: dict) -> dict:
        """Drops everything but `img` (H, W, 3) and `gt_label`."""
        planes = np.ascontiguousarray(results["img"].transpose(2, 0, 1))
        sample = BaseDataElement(gt_label=torch.tensor(results["gt_label"]))
        return dict(inputs=torch.from_numpy(planes), data_samples=sample)


class ResizeShortSide(BaseTransform):
    """Resizes the picture so that its shorter side has `side` pixels.

    Args:
        side: in pixels.
    """

    def __init__(self, side: int) -> None:
        self.side = side

    def transform(self, results: dict) -> dict:
        """Replaces `img` (H, W, 3) and its `img_shape`."""
        height, width = results["img"].shape[:2]
        factor = self.side / min(height, width)
        size = (max(self.side, round(width * factor)), max(self.side, round(height * factor)))
        mode = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        results["img"] = cv2.resize(results["img"], size, interpolation=mode)
        results["img_shape"] = size[::-1]
        return results
