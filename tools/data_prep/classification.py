"""The classification set: one handwritten digit in each cluttered picture, a folder a class.

A digit varies in sample (writer), height (45 to 85% of the side), place, aspect, rotation, contrast
and polarity. Around and partly over it lie strokes and fragments of other digits of the same ink,
so that neither a colour nor a few strokes tell the class. Picture number i of a split depends on
(seed, split, i, side) alone, hence not on workers or on the number of pictures.
"""

from functools import partial
from pathlib import Path

import cv2
import numpy as np

from data_prep import clutter, digits, store

VERSION = 1
CLASSES = tuple("0123456789")
HEIGHTS = (0.45, 0.85)
"""Height of the digit as a share of the picture's side: 29 to 54 px of 64."""
FRAGMENTS = (1, 5)
"""Number of fragments of other digits, both ends included."""
FRAGMENT_SIDE = (0.1, 0.22)
"""Side of a fragment as a share of the picture's side."""


def prepare(
    folder: Path,
    *,
    seed: int,
    counts: dict[str, int],
    side: int,
    workers: int = 0,
    overwrite: bool = False,
) -> bool:
    """Makes the set in `folder`, or what is missing of it.

    Args:
        counts: {'train': pictures, 'val': pictures}; classes take turns, so they are balanced.
        side: of the square pictures in pixels, at least 32.

    Returns:
        False if the complete set was there already.
    """
    if side < 32:
        raise ValueError(f"--picture-size must be at least 32 pixels, got {side}")
    if min(counts.values()) < len(CLASSES):
        raise ValueError(f"each split needs at least {len(CLASSES)} pictures, got {counts}")
    parameters = dict(
        kind="digits_classification", version=VERSION, seed=seed, counts=counts, side=side
    )
    if store.open_folder(folder, parameters, overwrite=overwrite):
        return False
    files, texts = {}, {}
    for split in digits.SPLITS:
        make = partial(make_picture, split=split, seed=seed, side=side)
        records, made = store.build_split(folder, split, counts[split], make, workers=workers)
        files.update(made)
        texts[f"{split}_samples.json"] = store.dump_json([record["samples"] for record in records])
    store.finish(folder, parameters, files, texts)
    return True


def make_picture(index: int, *, split: str, seed: int, side: int) -> tuple[str, bytes, dict]:
    """Picture number `index` as (class/file name, PNG bytes, record of its samples)."""
    rng = np.random.default_rng([seed, 20 + digits.SPLITS.index(split), index, side])
    samples = digits.split_indexes(split, seed)
    label = index % len(CLASSES)
    sample = int(rng.choice(samples[label]))
    picture = clutter.background(rng, side, texture=0.04)
    clutter.add_strokes(rng, picture, int(rng.integers(0, 4)))
    ink = digits.draw_glyph(
        sample,
        height=side * float(np.exp(rng.uniform(*np.log(HEIGHTS)))),
        angle=float(rng.uniform(-20, 20)),
        aspect=float(rng.uniform(0.75, 1.2)),
    )[:side, :side]
    h, w = ink.shape
    x, y = int(rng.integers(0, side - w + 1)), int(rng.integers(0, side - h + 1))
    ground = picture[y : y + h, x : x + w].mean((0, 1))
    colour = clutter.ink_colour(rng, ground, float(rng.uniform(0.3, 0.65)))
    others = add_fragments(rng, picture, samples, label, colour)
    patch = picture[y : y + h, x : x + w]
    patch += ink[..., None] * (colour - patch)
    clutter.add_strokes(rng, picture, int(rng.integers(0, 3)))
    noise = rng.normal(0, rng.uniform(0.02, 0.05), picture.shape)
    ok, png = cv2.imencode(".png", clutter.to_bytes(picture, noise))
    if not ok:
        raise RuntimeError("OpenCV could not encode a PNG")
    record = dict(label=label, samples=[sample, *others])
    return f"{CLASSES[label]}/{index:06d}.png", png.tobytes(), record


def add_fragments(
    rng: np.random.Generator,
    picture: np.ndarray,
    samples: dict[int, np.ndarray],
    label: int,
    colour: np.ndarray,
) -> list[int]:
    """Draws square pieces of digits of other classes into `picture`; returns their samples."""
    side = picture.shape[0]
    used = []
    for _ in range(int(rng.integers(FRAGMENTS[0], FRAGMENTS[1] + 1))):
        other = int((label + rng.integers(1, len(CLASSES))) % len(CLASSES))
        sample = int(rng.choice(samples[other]))
        height = side * float(rng.uniform(*HEIGHTS))
        ink = digits.draw_glyph(sample, height=height, angle=float(rng.uniform(-20, 20)))
        edge = int(side * rng.uniform(*FRAGMENT_SIDE))
        top = int(rng.integers(0, max(1, ink.shape[0] - edge)))
        left = int(rng.integers(0, max(1, ink.shape[1] - edge)))
        piece = ink[top : top + edge, left : left + edge, None]
        y = int(rng.integers(0, side - piece.shape[0] + 1))
        x = int(rng.integers(0, side - piece.shape[1] + 1))
        patch = picture[y : y + piece.shape[0], x : x + piece.shape[1]]
        patch += piece * (colour - patch)
        used.append(sample)
    return used
