"""Measured tiles and splits on disk: one JSON file for each kind of GPU and build of the kernels.

A reader never finds half a file (it is replaced as a whole), writers take turns by a lock beside
it, and each adds to what the others wrote. What is no such file, or is one of another kind, is told
in a warning that names it and moved aside to `<name>.bad`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: Raised when the meaning of a file's fields changes.
FORMAT = 1

#: By their numbers in csrc/cuda/plan_table.h and conv_kernels.h.
PRODUCTS = ("forward", "grad_input", "grad_weight")
TILES = (
    *("128x128", "128x64", "64x64"),
    *("wgmma 128x64", "wgmma 128x128", "wgmma 128x256", "wgmma 64x128"),
    "wgmma 256x128",
)

_AXES = ("in", "out", "kernel", "stride", "dilation", "padding")

#: The numbers of an entry, in the order of PlanKey::numbers(): sizes as the kernels see them (2D as
#: 3D of depth 1; padding at the beginning), whether statistics are taken (of grad-input: whether it
#: is grad_input_reduce) and wgmma may be used (0 or 1), bytes of a result; and what was chosen.
KEY_FIELDS = (
    "product", "n", "ci", "co", "groups",
    *(f"{name}_{axis}" for name in _AXES for axis in "dhw"),
    "statistics", "wgmma", "result_bytes",
)  # fmt: skip
FIELDS = (*KEY_FIELDS, "tile", "splits")

#: Entries by key: (tile, splits) by the numbers of KEY_FIELDS.
Choices = dict[tuple[int, ...], tuple[int, int]]


@dataclass(frozen=True)
class Kind:
    """What measured choices are good for.

    Attributes:
        gpu: name of the card.
        capability: compute capability, e.g. '9.0'.
        multiprocessors: streaming multiprocessors; MIG instances of a card differ in them.
        kernels: kernels_version() of csrc/cuda/ops_tune.cpp.
        cuda: version of CUDA that torch was built with, whose compiler made the kernels.
    """

    gpu: str
    capability: str
    multiprocessors: int
    kernels: int
    cuda: str

    def file_name(self) -> str:
        """Lower-case letters, digits, '.', '-' and '_' alone."""
        gpu = re.sub("[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        cuda = re.sub("[^a-z0-9.]+", "-", self.cuda.lower())
        return (
            f"{gpu}_sm{self.capability}_{self.multiprocessors}sms_cuda{cuda}_k{self.kernels}.json"
        )


def default_folder() -> Path:
    """`$DAQ_MM_CACHE`, else `$XDG_CACHE_HOME/daq_mm`, else `~/.cache/daq_mm`."""
    if os.environ.get("DAQ_MM_CACHE"):
        return Path(os.environ["DAQ_MM_CACHE"]).expanduser()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "daq_mm"
    return Path.home() / ".cache" / "daq_mm"


def load(folder: Path, kind: Kind) -> Choices:
    """What the folder knows of this kind; empty where there is no file, or none that is good."""
    path = folder / kind.file_name()
    try:
        return _read(path, kind)
    except ValueError:
        with _locked(path):  # another process may have put a good one there meanwhile
            return _read_or_move_aside(path, kind)


def add(folder: Path, kind: Kind, choices: Choices) -> None:
    """Write choices beside those that are there; of the same key, these replace them.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / kind.file_name()
    with _locked(path):
        merged = {**_read_or_move_aside(path, kind), **choices}
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            unfinished.write_text(_text(kind, merged))
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def from_numbers(numbers: list[int]) -> Choices:
    """Entries from rows of FIELDS one after another, as op `plan_table` gives them."""
    width = len(FIELDS)
    rows = [tuple(numbers[i : i + width]) for i in range(0, len(numbers), width)]
    return {row[:-2]: row[-2:] for row in rows}


def to_numbers(choices: Choices) -> list[int]:
    """The inverse of `from_numbers`."""
    return [number for key, choice in choices.items() for number in (*key, *choice)]


def in_words(choices: Choices) -> list[dict[str, Any]]:
    """Entries as dicts by FIELDS, with products and tiles by name."""
    rows = [dict(zip(FIELDS, (*key, *choice))) for key, choice in sorted(choices.items())]
    names = {"product": PRODUCTS, "tile": TILES}
    return [
        {field: names[field][value] if field in names else value for field, value in row.items()}
        for row in rows
    ]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's lock; released when the process ends, however it ends."""
    import fcntl  # not where there is no POSIX, and not needed to import the package

    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_or_move_aside(path: Path, kind: Kind) -> Choices:
    try:
        return _read(path, kind)
    except ValueError as error:
        bad = path.with_name(f"{path.name}.bad")
        os.replace(path, bad)
        warnings.warn(
            f"{path} is not used: {error}. It was moved to {bad.name}; products will be measured "
            "again where daq_mm.autotune measures",
            stacklevel=2,
        )
        return {}


def _read(path: Path, kind: Kind) -> Choices:
    """The file's entries; raises ValueError with the reason if it is not one of this kind."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(document, Mapping):
        raise ValueError("it holds no JSON object")
    for name, expected in _header(kind).items():
        if document.get(name) != expected:
            raise ValueError(f"its {name} is {document.get(name)!r}, and {expected!r} is expected")
    rows = document.get("choices")
    if not isinstance(rows, list):
        raise ValueError("it has no list of choices")
    for row in rows:
        _check(row)
    return {tuple(row[:-2]): (row[-2], row[-1]) for row in rows}


def _check(row: Any) -> None:
    numbers = isinstance(row, list) and all(type(n) is int and 0 <= n < 2**31 for n in row)
    if not numbers or len(row) != len(FIELDS):
        raise ValueError(f"one of its choices is {row!r}; expected {len(FIELDS)} numbers")
    entry = dict(zip(FIELDS, row))
    for field, names in (("product", PRODUCTS), ("tile", TILES)):
        if entry[field] >= len(names):
            raise ValueError(f"one of its choices has {field} {entry[field]}, which is unknown")


def _header(kind: Kind) -> dict[str, Any]:
    return {"format": FORMAT, **asdict(kind), "fields": list(FIELDS)}


def _text(kind: Kind, choices: Choices) -> str:
    """JSON with an entry a line."""
    header = "".join(
        f" {json.dumps(name)}: {json.dumps(value)},\n" for name, value in _header(kind).items()
    )
    rows = ",\n".join(f"  {json.dumps([*key, *choices[key]])}" for key in sorted(choices))
    return f'{{\n{header} "choices": [\n{rows}\n ]\n}}\n'
