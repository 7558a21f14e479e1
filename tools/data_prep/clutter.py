"""Backgrounds and distractors shared by the generated pictures and videos."""

import cv2
import numpy as np


def background(rng: np.random.Generator, side: int, texture: float = 0.05) -> np.ndarray:
    """(side, side, 3) float32 in 0..1: a colour gradient with smooth texture on it.

    Args:
        texture: largest standard deviation of each of the three octaves of the texture.
    """
    start, end = rng.uniform(0.15, 0.85, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, side)
    ramp = axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle) + 0.5
    picture = start + (end - start) * np.clip(ramp, 0, 1)[..., None]
    for cells in (4, 9, 20):
        noise = rng.normal(0, rng.uniform(0.01, texture), (cells, cells, 3)).astype(np.float32)
        picture = picture + cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture, 0, 1).astype(np.float32)


def add_strokes(rng: np.random.Generator, picture: np.ndarray, count: int) -> None:
    """Draws `count` lines, arcs and blobs, which look like parts of digits, into `picture`."""
    side = picture.shape[0]
    for _ in range(count):
        colour = tuple(float(c) for c in rng.uniform(0, 1, 3))
        x, y = (int(v) for v in rng.integers(0, side, 2))
        size = int(rng.integers(side // 16, side // 4))
        thickness = int(rng.integers(1, max(2, side // 24) + 1))
        kind = rng.integers(3)
        if kind == 0:
            angle = rng.uniform(0, 2 * np.pi)
            far = (int(x + 2 * size * np.cos(angle)), int(y + 2 * size * np.sin(angle)))
            cv2.line(picture, (x, y), far, colour, thickness, cv2.LINE_AA)
        elif kind == 1:
            first = float(rng.uniform(0, 360))
            axes = (size, max(1, int(size * rng.uniform(0.4, 1.0))))
            cv2.ellipse(
                picture,
                (x, y),
                axes,
                float(rng.uniform(0, 180)),
                first,
                first + float(rng.uniform(60, 250)),
                colour,
                thickness,
                cv2.LINE_AA,
            )
        else:
            cv2.circle(picture, (x, y), max(1, size // 3), colour, -1, cv2.LINE_AA)


def ink_colour(rng: np.random.Generator, ground: np.ndarray, contrast: float) -> np.ndarray:
    """(3,) colour whose luminance is `contrast` away from that of `ground` (3,).

    The sign, so the polarity of the digit, is drawn; where there is no room on that side the
    other one is taken.
    """
    level = float(ground.mean())
    sign = 1.0 if rng.random() < 0.5 else -1.0
    if not 0.0 <= level + sign * contrast <= 1.0:
        sign = -sign
    tint = rng.normal(0, 0.08, 3)
    return np.clip(level + sign * contrast + tint - tint.mean(), 0, 1).astype(np.float32)


def to_bytes(picture: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Adds `noise` and rounds 0..1 to uint8 0..255."""
    return np.clip(np.rint((picture + noise) * 255), 0, 255).astype(np.uint8)
