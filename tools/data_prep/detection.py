"""The detection set: cluttered pictures of handwritten digits in COCO format.

A picture holds 2 to `MAX_DIGITS` digits on a textured gradient with distractor strokes and noise.
Digits vary in sample (writer), height (18 to 48% of the side), aspect, slight rotation, contrast
and polarity, and may cover one another by at most `MAX_COVER` of the smaller box. Picture number i
of a split depends on (seed, split, i, side) alone, hence not on workers or on the number of
pictures.
"""

from functools import partial
from pathlib import Path

import cv2
import numpy as np

from data_prep import clutter, digits, store

VERSION = 1
CLASSES = tuple("0123456789")
MAX_DIGITS = 7
MAX_COVER = 0.2
HEIGHTS = (0.18, 0.48)
"""Height of a digit as a share of the picture's side: 17 to 46 px of 96."""


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
        counts: {'train': pictures, 'val': pictures}.
        side: of the square pictures in pixels, at least 64.

    Returns:
        False if the complete set was there already.
    """
    if side < 64:
        raise ValueError(f"--size must be at least 64 pixels, got {side}")
    parameters = dict(kind="digits_detection", version=VERSION, seed=seed, counts=counts, side=side)
    if store.open_folder(folder, parameters, overwrite=overwrite):
        return False
    files, texts = {}, {}
    for split in digits.SPLITS:
        make = partial(make_picture, split=split, seed=seed, side=side)
        records, made = store.build_split(folder, split, counts[split], make, workers=workers)
        files.update(made)
        texts[f"annotations/{split}.json"] = store.dump_json(coco_dict(records, side))
    store.finish(folder, parameters, files, texts)
    return True


def make_picture(index: int, *, split: str, seed: int, side: int) -> tuple[str, bytes, dict]:
    """Picture number `index` as (file name, PNG bytes, record of its digits)."""
    rng = np.random.default_rng([seed, digits.SPLITS.index(split), index, side])
    samples = digits.split_indexes(split, seed)
    picture = clutter.background(rng, side, texture=0.03)
    clutter.add_strokes(rng, picture, int(rng.integers(1, 6)))
    objects = _place_digits(rng, picture, samples)
    # a few thin strokes on top, so that ink is not always the topmost layer
    clutter.add_strokes(rng, picture, int(rng.integers(0, 2)))
    noise = rng.normal(0, rng.uniform(0.01, 0.03), picture.shape)
    ok, png = cv2.imencode(".png", clutter.to_bytes(picture, noise))
    if not ok:
        raise RuntimeError("OpenCV could not encode a PNG")
    return f"{index:06d}.png", png.tobytes(), dict(file=f"{index:06d}.png", objects=objects)


def _place_digits(
    rng: np.random.Generator, picture: np.ndarray, samples: dict[int, np.ndarray]
) -> list[dict]:
    """Draws digits into `picture`; one {digit, sample, bbox: x, y, w, h in pixels} for each."""
    side = picture.shape[0]
    objects: list[dict] = []
    wanted = int(rng.integers(2, MAX_DIGITS + 1))
    for _ in range(4 * wanted):  # attempts: a crowded picture may end with fewer
        if len(objects) == wanted:
            break
        digit = int(rng.integers(10))
        sample = int(rng.choice(samples[digit]))
        # the logarithm is uniform, so small digits are as common as large ones
        height = side * float(np.exp(rng.uniform(*np.log(HEIGHTS))))
        ink = digits.draw_glyph(
            sample,
            height=height,
            angle=float(rng.uniform(-15, 15)),
            aspect=float(rng.uniform(0.8, 1.25)),
        )
        h, w = ink.shape
        if max(h, w) >= side:
            continue
        x, y = int(rng.integers(0, side - w)), int(rng.integers(0, side - h))
        if any(cover((x, y, w, h), other["bbox"]) > MAX_COVER for other in objects):
            continue
        patch = picture[y : y + h, x : x + w]
        colour = clutter.ink_colour(rng, patch.mean((0, 1)), float(rng.uniform(0.35, 0.7)))
        patch += ink[..., None] * (colour - patch)
        objects.append(dict(digit=digit, sample=sample, bbox=[x, y, w, h]))
    return objects


def cover(a: tuple[int, ...] | list[int], b: tuple[int, ...] | list[int]) -> float:
    """Intersection of two boxes (x, y, w, h) over the area of the smaller one."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min(a[2] * a[3], b[2] * b[3])


def coco_dict(records: list[dict], side: int) -> dict:
    """COCO annotations; `sample` beside a box is the digit's index in `load_digits()`."""
    images, annotations = [], []
    for image_id, record in enumerate(records):
        images.append(dict(id=image_id, file_name=record["file"], width=side, height=side))
        for item in record["objects"]:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=item["digit"] + 1,
                    bbox=item["bbox"],
                    area=item["bbox"][2] * item["bbox"][3],
                    iscrowd=0,
                    sample=item["sample"],
                )
            )
    categories = [dict(id=number + 1, name=name) for number, name in enumerate(CLASSES)]
    return dict(images=images, annotations=annotations, categories=categories)
