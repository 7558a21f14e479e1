"""Checks of the video set: files decode, and a single frame does not tell the motion."""

from pathlib import Path

import cv2
import numpy as np

from data_prep import store
from data_prep.video import CLASSES, MOTIONS, SHAPES


def read_list(folder: Path, split: str) -> list[tuple[Path, int]]:
    """[(path, label)] of `{split}.txt`, mmaction's list of videos."""
    rows = (line.rsplit(" ", 1) for line in (folder / f"{split}.txt").read_text().splitlines())
    return [(folder / split / name, int(label)) for name, label in rows]


def decode(path: Path) -> np.ndarray:
    """(frames, h, w, 3) uint8."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        frames.append(frame)
    capture.release()
    if not frames:
        raise store.DataSetError(f"{path} does not decode")
    return np.stack(frames)


def check(folder: Path) -> list[str]:
    """Decodes all videos and tries to tell the motion of a shape from single frames.

    A ridge classifier on the pixels of one frame, trained on `train` and tested on `val`, must stay
    within four standard errors of chance (1 in `len(MOTIONS)`).

    Raises:
        store.DataSetError: wrong number of frames, or a single frame tells the motion.
    """
    parameters = store.read_manifest(folder)["parameters"]
    frames, labels = {}, {}
    for split in ("train", "val"):
        clips, labels[split] = [], []
        for path, label in read_list(folder, split):
            clip = decode(path)
            expected = (parameters["frames"], parameters["side"], parameters["side"], 3)
            if clip.shape != expected:
                raise store.DataSetError(f"{path}: expected {expected}, decoded {clip.shape}")
            clips.append(clip[len(clip) // 2].mean(-1).ravel() / 255)
            labels[split].append(label)
        frames[split], labels[split] = np.stack(clips), np.array(labels[split])
    right = _tell_motion(frames, labels)
    total, chance = len(labels["val"]), 1 / len(MOTIONS)
    bound = chance + 4 * np.sqrt(chance * (1 - chance) / total)
    if right / total > bound:
        raise store.DataSetError(
            f"a single frame tells the motion: {right / total:.3f} right, "
            f"chance is {chance:.3f}, bound {bound:.3f}"
        )
    return [
        f"{len(labels['train'])} + {total} videos decode, {len(CLASSES)} classes",
        f"motion told from one frame: {right / total:.3f} (chance {chance:.3f}, bound {bound:.3f})",
    ]


def _tell_motion(frames: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> int:
    """Number of val videos whose motion a ridge classifier tells, shape by shape."""
    right = 0
    for number in range(len(SHAPES)):
        x, y = {}, {}
        for split in ("train", "val"):
            chosen = labels[split] // len(MOTIONS) == number
            x[split], y[split] = frames[split][chosen], labels[split][chosen] % len(MOTIONS)
        mean = x["train"].mean(0)
        inside, outside = x["train"] - mean, x["val"] - mean
        # dual form: there are far fewer videos than pixels
        gram = inside @ inside.T + 10.0 * np.eye(len(inside))
        weights = np.linalg.solve(gram, np.eye(len(MOTIONS))[y["train"]])
        right += int(((outside @ inside.T @ weights).argmax(1) == y["val"]).sum())
    return right
