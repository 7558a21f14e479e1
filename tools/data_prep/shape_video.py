"""The shape-video set: the class of a video is the digit in it, whatever the digit's motion.

For networks that see frames one by one, such as TSN, which `video`'s classes would ask for what a
single frame does not show. Frames are noisy, and the borders cut the digit in some of them, so that
a network gains by pooling them; the digit is always lighter than its ground, so that deep and
narrow networks begin to learn in a few hundred iterations. Motions, files, encoding: `video`'s.

Video number i of a split depends on (seed, split, i, side, frames) alone. The test set is a set of
its own with the digits of validation in other clips: more of them, since a few hundred clips tell
two trained networks apart by no less than a point or two.
"""

from functools import partial
from pathlib import Path

import numpy as np

from data_prep import clutter, digits, store, video

VERSION = 4
TEST = "test"
"""The split of the test set, whose digits are those of validation."""
CLASSES = tuple("0123456789")
HEIGHTS = (0.5, 0.75)
"""Height of the digit as a share of the side."""
CONTRAST = (0.35, 0.6)
"""How much lighter than its ground the digit is, of a range of 1."""
GROUND = 0.5
"""What the brightness of `clutter.background` is multiplied by, to leave room for the digit."""


def prepare(
    folder: Path,
    *,
    seed: int,
    counts: dict[str, int],
    side: int,
    frames: int,
    workers: int = 0,
    overwrite: bool = False,
    kind: str = "digits_shape_video",
    splits: tuple[str, ...] = digits.SPLITS,
) -> bool:
    """Makes the set in `folder`, or what is missing of it; arguments and result as `video`'s."""
    video.check_size(side, frames)
    parameters = dict(kind=kind, version=VERSION, seed=seed, counts=counts, side=side)
    parameters["frames"] = frames
    if store.open_folder(folder, parameters, overwrite=overwrite):
        return False
    make = partial(make_video, seed=seed, side=side, frames=frames)
    video.build(folder, parameters, make, CLASSES, workers=workers, splits=splits)
    return True


def prepare_test(folder: Path, **arguments) -> bool:
    """As `prepare`, of the test set alone: `counts` has 'test'."""
    return prepare(folder, **arguments, kind="digits_shape_video_test", splits=(TEST,))


def make_video(
    index: int, *, split: str, seed: int, side: int, frames: int
) -> tuple[str, bytes, dict]:
    """Video number `index` as (file name, AVI bytes, record)."""
    stream = 30 + (*digits.SPLITS, TEST).index(split)
    rng = np.random.default_rng([seed, stream, index, side, frames])
    label = index % len(CLASSES)
    source = "val" if split == TEST else split
    sample = int(rng.choice(digits.split_indexes(source, seed)[label]))
    motion = video.MOTIONS[int(rng.integers(len(video.MOTIONS)))]
    path = video._path(rng, motion, frames) * side
    name = f"{index:06d}.avi"
    content = video.encode(_render(rng, path, sample, side))
    return name, content, dict(file=name, label=label, samples=[sample])


def _render(rng: np.random.Generator, path: np.ndarray, sample: int, side: int) -> np.ndarray:
    """(frames, side, side, 3) uint8; `path` (frames, 2) in pixels."""
    ground = GROUND * clutter.background(rng, side, texture=0.04)
    height = side * rng.uniform(*HEIGHTS)
    ink = digits.draw_glyph(sample, height=height, angle=float(rng.uniform(-10, 10)))
    tint = rng.normal(0, 0.08, 3)
    colour = ground.mean() + rng.uniform(*CONTRAST) + tint - tint.mean()
    sigma = rng.uniform(0.02, 0.05)
    clip = np.empty((len(path), side, side, 3), np.uint8)
    for number, (x, y) in enumerate(path):
        alpha = video._on_torus(ink, x, y, side)[..., None]
        picture = ground + alpha * (colour - ground)
        clip[number] = clutter.to_bytes(picture, rng.normal(0, sigma, picture.shape))
    return clip
