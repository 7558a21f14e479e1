"""Checks that a real data set lies where the full-size configs look for it.

Nothing is downloaded: these sets have terms of use, and most want a registration. What is missing
is listed with the place to get it from, by name. The check reads the lists of annotations and the
first files that they name, not every file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

LOOKED_AT = 20
"""Files of a list that are looked for."""


@dataclass(frozen=True)
class RealSet:
    """A data set: folder below the data root, where it comes from, what must be there."""

    folder: str
    source: str
    problems: Callable[[Path], Iterator[str]]


def check(name: str, root: Path) -> list[str]:
    """What is missing or wrong of the set `name` below the data root; empty if nothing is."""
    real = SETS[name]
    folder = root / real.folder
    if not folder.is_dir():
        return [f"{folder} does not exist"]
    return list(real.problems(folder))


def _missing(folder: Path, *names: str) -> Iterator[str]:
    for name in names:
        if not (folder / name).exists():
            yield f"{folder / name} is missing"


def _cifar10(folder: Path) -> Iterator[str]:
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        path = folder / name
        if not path.is_file():
            yield f"{path} is missing"
        elif path.stat().st_size < 10_000 * 3072:
            yield f"{path} is too short for 10,000 pictures: {path.stat().st_size} bytes"


def _imagenet(folder: Path) -> Iterator[str]:
    for split in ("train", "val"):
        path = folder / split
        if not path.is_dir():
            yield f"{path} is missing"
            continue
        classes = sorted(p for p in path.iterdir() if p.is_dir())
        if len(classes) != 1000:
            yield f"{path} holds {len(classes)} folders, expected one for each of 1000 classes"
        for one in classes[:LOOKED_AT]:
            if not any(one.glob("*.JPEG")):
                yield f"{one} holds no .JPEG file"


def _coco(folder: Path) -> Iterator[str]:
    for split in ("train2017", "val2017"):
        yield from _missing(folder, f"annotations/instances_{split}.json", split)
        if (folder / split).is_dir() and not any((folder / split).glob("*.jpg")):
            yield f"{folder / split} holds no .jpg file"


def _voc(folder: Path) -> Iterator[str]:
    lists = {"VOC2007": ("trainval", "test"), "VOC2012": ("trainval",)}
    for year, splits in lists.items():
        for split in splits:
            path = folder / year / "ImageSets/Main" / f"{split}.txt"
            if not path.is_file():
                yield f"{path} is missing"
                continue
            for name in islice(path.read_text().split(), LOOKED_AT):
                yield from _missing(
                    folder / year, f"JPEGImages/{name}.jpg", f"Annotations/{name}.xml"
                )


def _listed(path: Path, videos: Path, classes: int) -> Iterator[str]:
    """Problems of a list of 'video label' lines and of the first videos in it."""
    if not path.is_file():
        yield f"{path} is missing"
        return
    for number, line in enumerate(path.read_text().splitlines(), 1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdecimal() or int(label) >= classes:
            yield f"{path}, line {number}: expected 'video label' with a label below {classes}"
            return
        if number <= LOOKED_AT and not (videos / name).is_file():
            yield f"{videos / name} is missing; it is in {path.name}"


def _kinetics400(folder: Path) -> Iterator[str]:
    for split in ("train", "val"):
        videos = folder / f"videos_{split}"
        yield from _listed(folder / f"kinetics400_{split}_list_videos.txt", videos, 400)


def _ucf101(folder: Path) -> Iterator[str]:
    for split in ("train", "val"):
        path = folder / f"ucf101_{split}_split_1_videos.txt"
        yield from _listed(path, folder / "videos", 101)


SETS = {
    "cifar10": RealSet(
        "cifar-10-batches-py",
        "the 'CIFAR-10 python version' archive of the CIFAR page at the University of Toronto, "
        "unpacked in the data root",
        _cifar10,
    ),
    "imagenet": RealSet(
        "imagenet",
        "ILSVRC2012 from image-net.org (registration); unpack so that train/ and val/ each hold "
        "one folder a class, named by its WordNet number (n01440764, ...)",
        _imagenet,
    ),
    "coco": RealSet(
        "coco",
        "cocodataset.org: 2017 train images, 2017 val images, 2017 train/val annotations",
        _coco,
    ),
    "voc": RealSet(
        "VOCdevkit",
        "the PASCAL VOC page of the University of Oxford: VOC2007 trainval and test, VOC2012 "
        "trainval",
        _voc,
    ),
    "kinetics400": RealSet(
        "kinetics400",
        "OpenDataLab's Kinetics-400, or the CVD Foundation's copy; the lists as in MMAction2's "
        "guide 'Preparing Kinetics'",
        _kinetics400,
    ),
    "ucf101": RealSet(
        "ucf101",
        "the UCF101 page of the Center for Research in Computer Vision (University of Central "
        "Florida): videos and recognition splits; the lists as in MMAction2's guide "
        "'Preparing UCF-101'",
        _ucf101,
    ),
}
