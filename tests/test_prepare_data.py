"""prepare_data: the generated sets are reproducible, resumable, disjoint and readable."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="the generator needs opencv-python")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

TOOL = Path(__file__).resolve().parent.parent / "tools" / "prepare_data.py"
sys.path.insert(0, str(TOOL.parent))

import prepare_data  # noqa: E402
from data_prep import (  # noqa: E402
    classification,
    detection,
    digits,
    real_data,
    shape_video,
    store,
    video,
    video_check,
)

DETECTION = dict(seed=0, counts=dict(train=12, val=5), side=96)
VIDEO = dict(seed=0, counts=dict(train=24, val=12), side=56, frames=16)


@pytest.fixture(scope="module")
def detection_set(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detection") / "digits_detection"
    assert detection.prepare(folder, **DETECTION)
    return folder


@pytest.fixture(scope="module")
def video_set(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("video") / "digits_video"
    assert video.prepare(folder, **VIDEO)
    return folder


def checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): store.digest(path.read_bytes()) for path in files}


@pytest.mark.parametrize("workers", [0, 2])
def test_same_seed_same_bytes(tmp_path, detection_set, workers):
    folder = tmp_path / "digits_detection"
    detection.prepare(folder, **DETECTION, workers=workers)
    assert checksums(folder) == checksums(detection_set)


def test_same_seed_same_videos(video_set):
    name, content, _ = video.make_video(5, split="val", seed=0, side=56, frames=16)
    assert (video_set / "val" / name).read_bytes() == content


def test_other_seed_other_bytes():
    first, second = (
        detection.make_picture(0, split="train", seed=seed, side=96)[1] for seed in (0, 1)
    )
    assert first != second


def test_resumes_after_a_kill(tmp_path, detection_set, monkeypatch):
    folder = tmp_path / "digits_detection"
    made = []
    original = detection.make_picture

    def until_seven(index, **kwargs):
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append(index)
        return original(index, **kwargs)

    monkeypatch.setattr(detection, "make_picture", until_seven)
    with pytest.raises(KeyboardInterrupt):
        detection.prepare(folder, **DETECTION)
    # what a kill may leave besides: a torn journal line, a part file, a damaged last file
    with open(folder / ".journal-train.jsonl", "ab") as journal:
        journal.write(b'{"index": 7, "pa')
    (folder / "train" / "000007.png.part").write_bytes(b"half")
    (folder / "train" / "000003.png").write_bytes(b"damaged")
    with pytest.raises(store.DataSetError, match="unfinished"):
        store.verify(folder)

    again = []
    monkeypatch.setattr(
        detection, "make_picture", lambda i, **kw: (again.append(i), original(i, **kw))[1]
    )
    assert detection.prepare(folder, **DETECTION)
    assert again == [3, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4]  # the rest of train, then val
    assert checksums(folder) == checksums(detection_set)


def test_complete_set_is_left_alone(detection_set):
    before = {path: path.stat().st_mtime_ns for path in detection_set.rglob("*")}
    assert detection.prepare(detection_set, **DETECTION) is False
    assert before == {path: path.stat().st_mtime_ns for path in detection_set.rglob("*")}


def test_other_parameters_are_refused(tmp_path):
    folder = tmp_path / "digits_detection"
    small = dict(seed=0, counts=dict(train=1, val=1), side=96)
    detection.prepare(folder, **small)
    with pytest.raises(store.DataSetError, match="seed: on disk 0, asked for 1"):
        detection.prepare(folder, **{**small, "seed": 1})
    assert detection.prepare(folder, **{**small, "seed": 1}, overwrite=True)
    assert store.verify(folder)["parameters"]["seed"] == 1


def test_foreign_folder_is_never_deleted(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(store.DataSetError, match="manifest.json"):
            detection.prepare(tmp_path, **DETECTION, overwrite=overwrite)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_verify_finds_damage(tmp_path):
    folder = tmp_path / "digits_detection"
    detection.prepare(folder, seed=0, counts=dict(train=2, val=1), side=96)
    store.verify(folder)
    (folder / "train/000001.png").write_bytes(b"x")
    with pytest.raises(store.DataSetError, match="000001.png has changed"):
        store.verify(folder)
    (folder / "train/000001.png").unlink()
    with pytest.raises(FileNotFoundError, match="000001.png is missing"):
        store.verify(folder)


def test_splits_share_no_sample():
    for seed in (0, 1):
        train, val = (digits.split_indexes(split, seed) for split in digits.SPLITS)
        for digit in range(10):
            assert not np.intersect1d(train[digit], val[digit]).size
        both = np.concatenate([*train.values(), *val.values()])
        assert np.array_equal(np.sort(both), np.arange(1797))


def test_pictures_share_no_sample(detection_set):
    used = {}
    for split in digits.SPLITS:
        coco = json.loads((detection_set / f"annotations/{split}.json").read_text())
        used[split] = {item["sample"] for item in coco["annotations"]}
    assert used["train"] and used["val"] and not used["train"] & used["val"]


def test_videos_share_no_sample(video_set):
    train, val = (
        set(sum(json.loads((video_set / f"{split}_samples.json").read_text()), []))
        for split in digits.SPLITS
    )
    assert train and val and not train & val


def test_coco_file_is_valid(detection_set):
    api = pytest.importorskip("pycocotools.coco", reason="pycocotools not installed")
    coco = api.COCO(str(detection_set / "annotations/train.json"))
    assert len(coco.getImgIds()) == DETECTION["counts"]["train"]
    assert [item["name"] for item in coco.loadCats(coco.getCatIds())] == list("0123456789")
    boxes = coco.loadAnns(coco.getAnnIds())
    for item in boxes:
        x, y, w, h = item["bbox"]
        assert x >= 0 and y >= 0 and x + w <= 96 and y + h <= 96
        assert 5 <= w and 5 <= h and item["area"] == w * h
    for image in coco.getImgIds():
        inside = [item["bbox"] for item in coco.loadAnns(coco.getAnnIds(imgIds=[image]))]
        for number, box in enumerate(inside):
            assert all(
                detection.cover(box, other) <= detection.MAX_COVER for other in inside[:number]
            )


def test_videos_decode(video_set):
    decord = pytest.importorskip("decord", reason="decord not installed")
    rows = video_check.read_list(video_set, "train")
    assert sorted({label for _, label in rows}) == list(range(len(video.CLASSES)))
    for path, _ in rows[:6]:
        reader = decord.VideoReader(str(path), num_threads=1)
        frames = reader.get_batch(range(len(reader))).asnumpy()
        assert frames.shape == (16, 56, 56, 3)
        # cv2 gives BGR; both read the same pixels
        assert np.abs(frames[..., ::-1].astype(int) - video_check.decode(path)).mean() < 2


@pytest.mark.parametrize("motion", video.MOTIONS)
def test_one_frame_does_not_tell_the_motion(motion):
    """In every frame the place is uniform on the torus, whatever the motion."""
    rng = np.random.default_rng(0)
    paths = np.stack([video._path(rng, motion, 16) for _ in range(4000)])
    for frame in (0, 7, 15):
        for axis in (0, 1):
            counts = np.histogram(paths[:, frame, axis], bins=10, range=(0, 1))[0]
            # chi-square with 9 degrees of freedom exceeds 33.7 once in 10,000
            assert ((counts - 400) ** 2 / 400).sum() < 33.7


def test_motions_go_their_way():
    """Every step has an allowed speed and the angle that the motion is named after."""
    rng = np.random.default_rng(0)
    for motion, expected in zip(video.MOTIONS, video.ANGLES, strict=True):
        path = np.stack([video._path(rng, motion, 16) for _ in range(50)])
        steps = (np.diff(path, axis=1) + 0.5) % 1.0 - 0.5
        speed = np.linalg.norm(steps, axis=-1)
        assert ((video.SPEED[0] < speed) & (speed < video.SPEED[1])).all()
        angle = np.rad2deg(np.arctan2(steps[..., 1], steps[..., 0]))
        assert np.allclose((angle - expected + 180) % 360, 180)


@pytest.mark.parametrize(
    "kwargs, words",
    [(dict(side=48), "--video-size must be one of"), (dict(frames=4), "--video-frames")],
)
def test_wrong_video_settings(tmp_path, kwargs, words):
    with pytest.raises(ValueError, match=words):
        video.prepare(tmp_path / "digits_video", **{**VIDEO, **kwargs})


def test_classification_set(tmp_path):
    settings = dict(seed=0, counts=dict(train=30, val=20), side=48)
    assert classification.prepare(tmp_path / "a", **settings)
    assert classification.prepare(tmp_path / "b", **settings)
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b")
    for split, count in settings["counts"].items():
        for name in classification.CLASSES:
            pictures = list((tmp_path / "a" / split / name).glob("*.png"))
            assert len(pictures) == count // 10
    train, val = (
        set(sum(json.loads((tmp_path / "a" / f"{split}_samples.json").read_text()), []))
        for split in digits.SPLITS
    )
    assert len(train) > 30 and len(val) > 20 and not train & val
    with pytest.raises(ValueError, match="--picture-size must be at least 32"):
        classification.prepare(tmp_path / "c", seed=0, counts=settings["counts"], side=16)
    with pytest.raises(ValueError, match="each split needs at least 10"):
        classification.prepare(tmp_path / "c", seed=0, counts=dict(train=10, val=9), side=48)


def test_shape_video_set(tmp_path):
    settings = dict(seed=0, counts=dict(train=20, val=10), side=56, frames=8)
    assert shape_video.prepare(tmp_path / "a", **settings)
    rows = video_check.read_list(tmp_path / "a", "train")
    assert [label for _, label in rows] == list(range(10)) * 2
    clip = video_check.decode(rows[3][0])
    assert clip.shape == (8, 56, 56, 3)
    name, content, _ = shape_video.make_video(7, split="val", seed=0, side=56, frames=8)
    assert (tmp_path / "a/val" / name).read_bytes() == content
    used = [
        set(sum(json.loads((tmp_path / "a" / f"{split}_samples.json").read_text()), []))
        for split in digits.SPLITS
    ]
    assert not used[0] & used[1]


def test_shape_video_test_set_has_new_clips_of_the_digits_of_validation(tmp_path):
    settings = dict(seed=0, counts=dict(test=20), side=56, frames=8)
    assert shape_video.prepare_test(tmp_path / "a", **settings)
    assert not shape_video.prepare_test(tmp_path / "a", **settings)
    rows = video_check.read_list(tmp_path / "a", "test")
    assert [label for _, label in rows] == list(range(10)) * 2
    used = set(sum(json.loads((tmp_path / "a/test_samples.json").read_text()), []))
    known = digits.split_indexes("val", 0)
    assert used <= set(sum((known[digit].tolist() for digit in range(10)), []))
    for split in digits.SPLITS:
        _, content, _ = shape_video.make_video(0, split=split, seed=0, side=56, frames=8)
        assert content != (tmp_path / "a/test/000000.avi").read_bytes()


@pytest.fixture
def real_root(tmp_path) -> Path:
    """A data root where every real set is laid out with files as small as the check allows."""
    files = {f"cifar-10-batches-py/data_batch_{i}": None for i in range(1, 6)}
    files["cifar-10-batches-py/test_batch"] = None
    for split in ("train", "val"):
        files |= {f"imagenet/{split}/n{i:08d}/{i}.JPEG": "" for i in range(1000)}
        files[f"coco/{split}2017/0.jpg"] = files[f"coco/annotations/instances_{split}2017.json"] = (
            ""
        )
        files[f"kinetics400/kinetics400_{split}_list_videos.txt"] = "an eye/a.mp4 399\n"
        files[f"kinetics400/videos_{split}/an eye/a.mp4"] = ""
        files[f"ucf101/ucf101_{split}_split_1_videos.txt"] = "Archery/v.avi 100\n"
    files["ucf101/videos/Archery/v.avi"] = ""
    for year, split in ((2007, "trainval"), (2007, "test"), (2012, "trainval")):
        folder = f"VOCdevkit/VOC{year}"
        files[f"{folder}/ImageSets/Main/{split}.txt"] = f"{split}1\n"
        files[f"{folder}/JPEGImages/{split}1.jpg"] = files[f"{folder}/Annotations/{split}1.xml"] = (
            ""
        )
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            with open(path, "wb") as file:
                file.truncate(10_000 * 3072)  # sparse
        else:
            path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "removed", "words"),
    [
        ("cifar10", "cifar-10-batches-py/test_batch", "test_batch is missing"),
        ("imagenet", "imagenet/val/n00000003/3.JPEG", "n00000003 holds no .JPEG file"),
        ("coco", "coco/annotations/instances_val2017.json", "instances_val2017.json is missing"),
        ("voc", "VOCdevkit/VOC2012/Annotations/trainval1.xml", "trainval1.xml is missing"),
        ("kinetics400", "kinetics400/videos_val/an eye/a.mp4", "a.mp4 is missing; it is in"),
        ("ucf101", "ucf101/ucf101_train_split_1_videos.txt", "split_1_videos.txt is missing"),
    ],
)
def test_check_of_real_data(real_root, name, removed, words, capsys):
    prepare_data.main(["check", name, "--root", str(real_root)])
    assert "complete, as far as was looked" in capsys.readouterr().out
    (real_root / removed).unlink()
    with pytest.raises(SystemExit, match=f"{name} is not ready; it comes from"):
        prepare_data.main(["check", name, "--root", str(real_root)])
    assert words in capsys.readouterr().out
    assert real_data.check(name, real_root / "nowhere")[0].endswith("does not exist")


def test_check_of_a_list_with_a_wrong_label(real_root):
    (real_root / "ucf101/ucf101_val_split_1_videos.txt").write_text("Archery/v.avi 101\n")
    (problem,) = real_data.check("ucf101", real_root)
    assert "line 1: expected 'video label' with a label below 101" in problem


def test_command_line(tmp_path):
    command = [sys.executable, str(TOOL), "detection", "--root", str(tmp_path)]
    command += ["--train-images", "2", "--val-images", "1", "--size", "64"]
    for extra, words in ([], "made"), ([], "already"), (["--check"], "whole"):
        result = subprocess.run(command + extra, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0 and words in result.stdout, result.stderr
    result = subprocess.run(command + ["--seed", "3"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "other parameters" in result.stderr


@pytest.mark.parametrize(
    "argv", [["pictures"], ["--train-images", "0"], ["--seed", "-1"], ["check"], ["video", "coco"]]
)
def test_bad_command_line(argv, capsys):
    with pytest.raises(SystemExit) as info:
        prepare_data.parse_args(argv)
    assert info.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(prepare_data.NEEDED, "package_that_is_not_there", "its-distribution")
    with pytest.raises(SystemExit, match="pip install its-distribution"):
        prepare_data.require_packages()
