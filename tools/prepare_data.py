"""Makes the generated data sets under a data root, and checks the layout of real ones.

    python tools/prepare_data.py all --root data --seed 0
    python tools/prepare_data.py check coco --root data

`detection`, `video`, `shape_video`, `shape_video_test` and `classification` make `digits_detection`
and so on; `all` makes the five. The same seed gives the same bytes, whatever the number of workers.
A run that was killed continues where it stopped; a folder made with other parameters is refused
unless --overwrite is given. `--check` verifies generated files instead of making them; `check NAME`
tells what a real data set lacks, and where to get it.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from data_prep import real_data  # noqa: E402

NEEDED = {"numpy": "numpy", "cv2": "opencv-python", "sklearn": "scikit-learn", "tqdm": "tqdm"}
"""import name -> distribution, of what the makers need."""
COUNTED = ("images", "videos", "shapes", "pictures")
MAKERS = ("detection", "video", "shape_video", "shape_video_test", "classification")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="all", choices=(*MAKERS, "all", "check"))
    parser.add_argument("name", nargs="?", choices=tuple(real_data.SETS), help="after 'check'")
    parser.add_argument("--root", type=Path, default=Path("data"), help="default: data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-images", type=int, default=2400, help="detection, default 2400")
    parser.add_argument("--val-images", type=int, default=600, help="detection, default 600")
    parser.add_argument("--size", type=int, default=96, help="side of a picture, default 96")
    parser.add_argument("--train-videos", type=int, default=3600, help="video, default 3600")
    parser.add_argument("--val-videos", type=int, default=960, help="video, default 960")
    parser.add_argument("--video-size", type=int, default=56, help="side of a frame, default 56")
    parser.add_argument("--video-frames", type=int, default=8, help="frames a video, default 8")
    parser.add_argument("--train-shapes", type=int, default=3000, help="shape_video, default 3000")
    parser.add_argument("--val-shapes", type=int, default=500, help="shape_video, default 500")
    parser.add_argument(
        "--test-shapes", type=int, default=4000, help="shape_video_test, default 4000"
    )
    parser.add_argument(
        "--train-pictures", type=int, default=6000, help="classification, default 6000"
    )
    parser.add_argument("--val-pictures", type=int, default=2000, help="and 2000 of validation")
    parser.add_argument("--picture-size", type=int, default=64, help="their side, default 64")
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
    if (args.what == "check") != (args.name is not None):
        parser.error(f"give the name of a real data set after 'check': {', '.join(real_data.SETS)}")
    counts = [f"{split}_{kind}" for kind in COUNTED for split in ("train", "val")]
    counts.append("test_shapes")
    for name in counts:
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


def settings(
    args: argparse.Namespace, kind: str, splits: tuple[str, ...] = ("train", "val")
) -> dict:
    """Keyword arguments that every maker takes; `kind` names its counts on the command line."""
    counts = {split: getattr(args, f"{split}_{kind}") for split in splits}
    return dict(seed=args.seed, counts=counts, workers=args.workers, overwrite=args.overwrite)


def make(what: str, args: argparse.Namespace) -> None:
    """Makes or checks one generated set."""
    from data_prep import classification, detection, shape_video, store, video, video_check

    folder = args.root / f"digits_{what}"
    if args.check:
        store.verify(folder)
        if what == "video":
            for line in video_check.check(folder):
                print(f"{folder}: {line}")
        print(f"{folder}: whole")
        return
    frames = dict(side=args.video_size, frames=args.video_frames)
    if what == "detection":
        made = detection.prepare(folder, side=args.size, **settings(args, "images"))
    elif what == "video":
        made = video.prepare(folder, **frames, **settings(args, "videos"))
    elif what == "shape_video":
        made = shape_video.prepare(folder, **frames, **settings(args, "shapes"))
    elif what == "shape_video_test":
        own = settings(args, "shapes", splits=("test",))
        made = shape_video.prepare_test(folder, **frames, **own)
    else:
        made = classification.prepare(folder, side=args.picture_size, **settings(args, "pictures"))
    print(f"{folder}: {'made' if made else 'was there already'}")


def check_real(name: str, root: Path) -> None:
    """Tells what a real data set lacks; exit status 1 if it lacks anything."""
    problems = real_data.check(name, root)
    if not problems:
        print(f"{root / real_data.SETS[name].folder}: complete, as far as was looked")
        return
    print("\n".join(problems))
    sys.exit(f"prepare_data.py: {name} is not ready; it comes from {real_data.SETS[name].source}")


def main(argv: list[str] | None = None) -> None:
    """Entry point; user errors end with one line and exit status 1 or 2."""
    args = parse_args(argv)
    if args.what == "check":
        check_real(args.name, args.root)
        return
    require_packages()
    try:
        for what in MAKERS if args.what == "all" else (args.what,):
            make(what, args)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        sys.exit(f"prepare_data.py: {error}")


if __name__ == "__main__":
    main()
