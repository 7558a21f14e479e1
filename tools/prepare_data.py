"""Makes the generated data sets `digits_detection` and `digits_video` under a data root.

    python tools/prepare_data.py all --root data --seed 0

The same seed gives the same bytes, whatever the number of workers. A run that was killed continues
where it stopped; a folder made with other parameters is refused unless --overwrite is given.
`--check` verifies the files on disk instead of making them.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

NEEDED = {"numpy": "numpy", "cv2": "opencv-python", "sklearn": "scikit-learn", "tqdm": "tqdm"}
"""import name -> distribution, of what both makers need."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="all", choices=("detection", "video", "all"))
    parser.add_argument("--root", type=Path, default=Path("data"), help="default: data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-images", type=int, default=2400, help="detection, default 2400")
    parser.add_argument("--val-images", type=int, default=600, help="detection, default 600")
    parser.add_argument("--size", type=int, default=96, help="side of a picture, default 96")
    parser.add_argument("--train-videos", type=int, default=3600, help="video, default 3600")
    parser.add_argument("--val-videos", type=int, default=960, help="video, default 960")
    parser.add_argument("--video-size", type=int, default=56, help="side of a frame, default 56")
    parser.add_argument("--video-frames", type=int, default=8, help="frames a video, default 8")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes beside this one, default 0; does not change the result",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete a set that was made with other parameters"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="verify the sets on disk (checksums; for videos also decoding and "
        "that a single frame does not tell the motion) and make nothing",
    )
    args = parser.parse_args(argv)
    for name in ("train_images", "val_images", "train_videos", "val_videos"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.seed < 0 or args.workers < 0:
        parser.error("--seed and --workers must not be negative")
    return args


def require_packages() -> None:
    """Exits with the list of what has to be installed, if anything."""
    absent = [dist for name, dist in NEEDED.items() if importlib.util.find_spec(name) is None]
    if absent:
        sys.exit(f"prepare_data.py needs packages that are missing: pip install {' '.join(absent)}")


def detection(args: argparse.Namespace) -> None:
    """Makes or checks the detection set."""
    from data_prep import detection, store

    folder = args.root / "digits_detection"
    if args.check:
        store.verify(folder)
        print(f"{folder}: whole")
        return
    made = detection.prepare(
        folder,
        seed=args.seed,
        counts=dict(train=args.train_images, val=args.val_images),
        side=args.size,
        workers=args.workers,
        overwrite=args.overwrite,
    )
    print(f"{folder}: {'made' if made else 'was there already'}")


def video(args: argparse.Namespace) -> None:
    """Makes or checks the video set."""
    from data_prep import store, video, video_check

    folder = args.root / "digits_video"
    if args.check:
        store.verify(folder)
        for line in video_check.check(folder):
            print(f"{folder}: {line}")
        print(f"{folder}: whole")
        return
    made = video.prepare(
        folder,
        seed=args.seed,
        counts=dict(train=args.train_videos, val=args.val_videos),
        side=args.video_size,
        frames=args.video_frames,
        workers=args.workers,
        overwrite=args.overwrite,
    )
    print(f"{folder}: {'made' if made else 'was there already'}")


def main(argv: list[str] | None = None) -> None:
    """Entry point; user errors end with one line and exit status 1 or 2."""
    args = parse_args(argv)
    require_packages()
    try:
        if args.what in ("detection", "all"):
            detection(args)
        if args.what in ("video", "all"):
            video(args)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        sys.exit(f"prepare_data.py: {error}")


if __name__ == "__main__":
    main()
