"""A small mmengine run for the tests: a convolutional classifier on random images."""

import os

import mmengine
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.utils import digit_version
from torch import nn
from torch.utils.data import Dataset

#: For tests that resume a run.
needs_resume = pytest.mark.skipif(
    digit_version(mmengine.__version__) <= digit_version("0.10.7")
    and os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") != "1",
    reason="upstream mmengine up to 0.10.7 resumes its own checkpoints on torch >= 2.6 only with "
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1",
)


class ToyModel(BaseModel):
    """Three convolutions, one of them used twice, and a classifier head."""

    def __init__(self, channels=8, norm=True):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.head = nn.Conv2d(channels, 4, 1)

    def forward(self, inputs, labels, mode="tensor"):
        x = self.body(self.stem(inputs).relu()).relu()
        x = self.norm(self.body(x)).relu()
        logits = self.head(x).mean((2, 3))
        if mode == "loss":
            return {"loss": nn.functional.cross_entropy(logits, labels)}
        return logits


class ToyData(Dataset):
    """Images whose class is the strongest of four corners; a fixed function of the index."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, 8, 8, generator=generator) * 0.3
        label = index % 4
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 1
        return {"inputs": image, "labels": torch.tensor(label)}


def toy_runner(work_dir, *, epochs=2, hook=None, hooks=(), seed=0, batch_size=4, **overrides):
    """A mmengine Runner on the toy problem; `hook` is DAQHook's config dict or None for FP32."""
    custom = list(hooks)
    if hook is not None:
        custom.append(dict(type="DAQHook", **hook))
    settings = dict(
        model=ToyModel(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=ToyData(),
            batch_size=batch_size,
            num_workers=0,
            collate_fn=dict(type="default_collate"),
            sampler=dict(type=DefaultSampler, shuffle=True),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=1e-4)),
        custom_hooks=custom,
        default_hooks=dict(logger=dict(type="LoggerHook", interval=4)),
        randomness=dict(seed=seed),
        default_scope="mmengine",
        experiment_name=f"toy_{id(custom)}",
        log_level="INFO",
    )
    settings.update(overrides)
    torch.manual_seed(seed)
    settings["model"] = overrides.get("model", ToyModel())
    return Runner(**settings)
