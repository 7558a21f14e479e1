"""Data sets of image classification: folders of pictures, and CIFAR-10's own files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")


class ImageFolder(BaseDataset):
    """One folder a class, as ImageNet is laid out; classes in the order of their names.

    Args:
        data_root, data_prefix: `data_root/data_prefix['img_path']` holds the classes' folders.
        kwargs: other arguments of mmengine's BaseDataset. With `metainfo=dict(classes=...)` the
            folders must be these, in this order.

    Raises:
        FileNotFoundError: no such folder, or a class without a picture.
        ValueError: folders that are not the classes of `metainfo`.
    """

    def __init__(self, data_root: str = "", data_prefix: dict | None = None, **kwargs) -> None:
        super().__init__(data_root=data_root, data_prefix=data_prefix or {"img_path": ""}, **kwargs)

    def load_data_list(self) -> list[dict]:
        """[{img_path, gt_label}] in the order of the paths."""
        root = Path(self.data_prefix["img_path"])
        if not root.is_dir():
            raise FileNotFoundError(f"{root} does not exist; it should hold a folder a class")
        folders = sorted(path for path in root.iterdir() if path.is_dir())
        names = tuple(folder.name for folder in folders)
        wanted = tuple(self._metainfo.setdefault("classes", names))
        if names != wanted:
            raise ValueError(f"{root} holds the classes {names[:12]}, expected {wanted[:12]}")
        samples = []
        for label, folder in enumerate(folders):
            pictures = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not pictures:
                raise FileNotFoundError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
            samples += [dict(img_path=str(picture), gt_label=label) for picture in pictures]
        return samples


class CIFAR10(BaseDataset):
    """CIFAR-10 from its Python files (`data_batch_1` .. `data_batch_5`, `test_batch`).

    Args:
        data_root: folder of the files, `cifar-10-batches-py`.
        test_mode: read the 10,000 test pictures instead of the 50,000 of training.
        kwargs: other arguments of mmengine's BaseDataset.
    """

    METAINFO = dict(
        classes=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        )
    )

    def __init__(self, data_root: str = "", test_mode: bool = False, **kwargs) -> None:
        super().__init__(data_root=data_root, test_mode=test_mode, **kwargs)

    def load_data_list(self) -> list[dict]:
        """[{img: (32, 32, 3) uint8 BGR, gt_label}]."""
        files = ["test_batch"] if self.test_mode else [f"data_batch_{i}" for i in range(1, 6)]
        samples = []
        for name in files:
            pictures, labels = read_cifar(Path(self.data_root) / name)
            samples += [dict(img=img, gt_label=label) for img, label in zip(pictures, labels)]
        return samples


def read_cifar(path: Path) -> tuple[np.ndarray, list[int]]:
    """Pictures (N, 32, 32, 3) uint8 BGR and labels of one of CIFAR-10's Python files."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it is one of CIFAR-10's Python files")
    with open(path, "rb") as file:
        batch = pickle.load(file, encoding="bytes")
    rgb = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(rgb[..., ::-1]), [int(label) for label in batch[b"labels"]]
