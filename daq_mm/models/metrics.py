"""Accuracy of image classification as an mmengine metric."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.evaluator import BaseMetric


class Accuracy(BaseMetric):
    """Share of pictures whose label is among the k highest scores, between 0 and 1.

    Gives `accuracy/top{k}` for each k. mmpretrain's metric of the same name gives hundredths; its
    samples have the same fields, so this one serves its models too.

    Args:
        topk: numbers k.
        kwargs: arguments of mmengine's BaseMetric.
    """

    default_prefix = "accuracy"

    def __init__(self, topk: Sequence[int] = (1,), **kwargs) -> None:
        super().__init__(**kwargs)
        self.topk = tuple(topk)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keeps the rank of the label among each picture's scores, 0 for the highest."""
        for sample in data_samples:
            scores = sample["pred_score"]
            own = scores[sample["gt_label"]]
            # of equal scores the label's counts as the lowest; so does a score that is not a number
            self.results.append(len(scores) - 1 - int((scores < own).sum()))

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """{'top{k}': share}."""
        return {f"top{k}": sum(rank < k for rank in results) / len(results) for k in self.topk}
