"""Real handwritten digits: scikit-learn's `load_digits()`, split so that no sample is shared.

The 1,797 samples of 8x8 pixels come with scikit-learn, so nothing is downloaded. Each class is
shuffled with the seed and cut by `VAL_SHARE`; a sample belongs to train or to val, never to both.
"""

from functools import lru_cache

import cv2
import numpy as np

SPLITS = ("train", "val")
VAL_SHARE = 0.25
GLYPH_SIDE = 64
"""Side in pixels of an enlarged glyph, before it is scaled into a picture."""


@lru_cache(maxsize=1)
def _load() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn: pip install scikit-learn"
        ) from error
    raw = load_digits()
    return raw.images.astype(np.float32) / 16.0, raw.target.astype(np.int64)


def split_indexes(split: str, seed: int) -> dict[int, np.ndarray]:
    """{digit: indexes into load_digits() of the samples that belong to `split`}, stratified."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    _, target = _load()
    chosen = {}
    for digit in range(10):
        order = np.random.default_rng([seed, 77, digit]).permutation(
            np.flatnonzero(target == digit)
        )
        cut = round(len(order) * VAL_SHARE)
        chosen[digit] = np.sort(order[:cut] if split == "val" else order[cut:])
    return chosen


@lru_cache(maxsize=2048)
def glyph(index: int) -> np.ndarray:
    """Sample `index` as (GLYPH_SIDE, GLYPH_SIDE) float32 ink in 0..1 with an empty margin.

    Enlarged by cubic interpolation and sharpened at half height, which turns the blocky 8x8 scan
    into a pen stroke.
    """
    images, _ = _load()
    small = np.pad(images[index], 1)
    large = cv2.resize(small, (GLYPH_SIDE, GLYPH_SIDE), interpolation=cv2.INTER_CUBIC)
    return np.clip((large - 0.5) * 3.0 + 0.5, 0.0, 1.0).astype(np.float32)


def draw_glyph(index: int, *, height: float, angle: float, aspect: float = 1.0) -> np.ndarray:
    """Ink of sample `index`, cropped to its bounding box.

    Args:
        height: of the ink in pixels, before rotation.
        angle: counter-clockwise rotation in degrees.
        aspect: factor on the width.

    Returns:
        (h, w) float32 in 0..1; every border row and column has ink above 0.25.
    """
    ink = _crop(glyph(index))
    factor = height / ink.shape[0]
    side = int(np.ceil(1.5 * max(height, ink.shape[1] * factor * aspect))) + 4
    turn = cv2.getRotationMatrix2D((0, 0), angle, 1.0)[:, :2] @ np.diag([factor * aspect, factor])
    middle = np.array([ink.shape[1] - 1, ink.shape[0] - 1]) / 2
    matrix = np.column_stack([turn, (side - 1) / 2 - turn @ middle])
    # INTER_AREA does not exist for warps: blur first when the glyph shrinks
    if factor < 1:
        ink = cv2.GaussianBlur(ink, (0, 0), 0.4 / factor)
    return _crop(cv2.warpAffine(ink, matrix, (side, side), flags=cv2.INTER_LINEAR))


def _crop(ink: np.ndarray, level: float = 0.25) -> np.ndarray:
    rows, cols = np.flatnonzero((ink > level).any(1)), np.flatnonzero((ink > level).any(0))
    return ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
