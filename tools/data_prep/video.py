"""The video set: a handwritten digit that moves, so that the class is a shape AND a motion.

Classes are `SHAPES` x `MOTIONS`. No frame by itself tells the motion, by construction: frames are a
torus (what leaves on one side comes back on the other) and the place of the digit is

    (x0 + v t cos f, y0 + v t sin f) mod side,    f one of twelve directions, 30 degrees apart

with x0, y0 uniform on the torus. A uniform start plus any shift is uniform again, so for each frame
t the place has the same law (uniform) for all motions; speed, sample, size, contrast, background
and distractors are drawn in the same way for every class. Files are Motion JPEG, which codes each
frame by itself, so compression leaves no trace of the motion in a frame. `video_check` measures it.

Video number i of a split depends on (seed, split, i, side, frames) alone.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from data_prep import clutter, digits, store

VERSION = 2
SHAPES = (0, 1)
ANGLES = tuple(range(0, 360, 30))
"""Degrees clockwise from the right, of the directions of motion."""
MOTIONS = tuple(f"{angle}_degrees" for angle in ANGLES)
CLASSES = tuple(f"{shape}_{motion}" for shape in SHAPES for motion in MOTIONS)
FPS = 10
QUALITY = 85
"""Of the JPEG frames, in percent."""
SIDES = (56, 64, 80, 96, 112, 128)
"""Sides in pixels that decord 0.6 decodes exactly; it fails on some others, such as 48."""
SPEED = (0.045, 0.085)
"""Pixels a frame as a share of the side, for all motions alike."""
HEIGHTS = (0.4, 0.55)
"""Height of the digit as a share of the side."""


def prepare(
    folder: Path,
    *,
    seed: int,
    counts: dict[str, int],
    side: int,
    frames: int,
    workers: int = 0,
    overwrite: bool = False,
) -> bool:
    """Makes the set in `folder`, or what is missing of it.

    Args:
        counts: {'train': videos, 'val': videos}; classes take turns, so they are balanced.
        side: of the square frames in pixels, one of `SIDES`.
        frames: in each video, at least 8.

    Returns:
        False if the complete set was there already.
    """
    check_size(side, frames)
    parameters = dict(
        kind="digits_video", version=VERSION, seed=seed, counts=counts, side=side, frames=frames
    )
    if store.open_folder(folder, parameters, overwrite=overwrite):
        return False
    make = partial(make_video, seed=seed, side=side, frames=frames)
    build(folder, parameters, make, CLASSES, workers=workers)
    return True


def check_size(side: int, frames: int) -> None:
    """Raises ValueError for a size that cannot be made."""
    if side not in SIDES:
        raise ValueError(f"--video-size must be one of {SIDES}, got {side}")
    if frames < 8:
        raise ValueError(f"--video-frames must be at least 8, got {frames}")


def build(
    folder: Path,
    parameters: dict,
    make: Callable,
    classes: tuple[str, ...],
    *,
    workers: int,
    splits: tuple[str, ...] = digits.SPLITS,
) -> None:
    """Makes the splits by `make(index, split=...)`, their lists, and the manifest."""
    files, texts = {}, {"classes.txt": "\n".join((*classes, "")).encode()}
    for split in splits:
        count = parameters["counts"][split]
        records, made = store.build_split(
            folder, split, count, partial(make, split=split), workers=workers
        )
        files.update(made)
        texts[f"{split}.txt"] = "".join(
            f"{record['file']} {record['label']}\n" for record in records
        ).encode()
        texts[f"{split}_samples.json"] = store.dump_json([record["samples"] for record in records])
    store.finish(folder, parameters, files, texts)


def make_video(
    index: int, *, split: str, seed: int, side: int, frames: int
) -> tuple[str, bytes, dict]:
    """Video number `index` as (file name, AVI bytes, record)."""
    rng = np.random.default_rng([seed, 10 + digits.SPLITS.index(split), index, side, frames])
    label = index % len(CLASSES)
    shape, motion = SHAPES[label // len(MOTIONS)], MOTIONS[label % len(MOTIONS)]
    sample = int(rng.choice(digits.split_indexes(split, seed)[shape]))
    clip = _render(rng, _path(rng, motion, frames) * side, sample, side)
    name = f"{index:06d}.avi"
    return name, encode(clip), dict(file=name, label=label, samples=[sample])


def _path(rng: np.random.Generator, motion: str, frames: int) -> np.ndarray:
    """(frames, 2) places x, y as shares of the side; y points down."""
    start = rng.uniform(0, 1, 2)
    speed = rng.uniform(*SPEED)
    angle = np.deg2rad(ANGLES[MOTIONS.index(motion)])  # y points down: clockwise
    direction = np.array([np.cos(angle), np.sin(angle)])
    return (start + speed * np.arange(frames)[:, None] * direction) % 1.0


def _render(rng: np.random.Generator, path: np.ndarray, sample: int, side: int) -> np.ndarray:
    """(frames, side, side, 3) uint8 of a digit that follows `path` (pixels) on a still ground."""
    ground = clutter.background(rng, side, texture=0.02)
    clutter.add_strokes(rng, ground, int(rng.integers(0, 3)))
    ink = digits.draw_glyph(
        sample, height=side * rng.uniform(*HEIGHTS), angle=float(rng.uniform(-15, 15))
    )
    colour = clutter.ink_colour(rng, ground.mean((0, 1)), float(rng.uniform(0.35, 0.65)))
    sigma = rng.uniform(0.01, 0.03)
    clip = np.empty((len(path), side, side, 3), np.uint8)
    for number, (x, y) in enumerate(path):
        alpha = _on_torus(ink, x, y, side)[..., None]
        picture = ground + alpha * (colour - ground)
        clip[number] = clutter.to_bytes(picture, rng.normal(0, sigma, picture.shape))
    return clip


def _on_torus(ink: np.ndarray, x: float, y: float, side: int) -> np.ndarray:
    """(side, side) alpha of `ink` with its corner at (x, y) px, wrapped round the borders."""
    matrix = np.array([[1, 0, x % 1.0], [0, 1, y % 1.0]], np.float64)
    patch = np.zeros((side, side), np.float32)
    h, w = ink.shape[0] + 1, ink.shape[1] + 1
    patch[:h, :w] = cv2.warpAffine(ink, matrix, (w, h), flags=cv2.INTER_LINEAR)
    return np.roll(patch, (int(y), int(x)), axis=(0, 1))


def encode(clip: np.ndarray) -> bytes:
    """Motion JPEG in AVI of `clip` (frames, h, w, 3) uint8 BGR, by OpenCV's own encoder.

    OpenCV's built-in writer stores no date, so the same clip gives the same bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.avi"
        writer = cv2.VideoWriter(
            str(path),
            cv2.CAP_OPENCV_MJPEG,
            cv2.VideoWriter_fourcc(*"MJPG"),
            FPS,
            clip.shape[2:0:-1],
        )
        if not writer.isOpened():
            raise RuntimeError("this OpenCV cannot write Motion JPEG; install opencv-python")
        writer.set(cv2.VIDEOWRITER_PROP_QUALITY, QUALITY)
        for frame in clip:
            writer.write(np.ascontiguousarray(frame))
        writer.release()
        return path.read_bytes()
