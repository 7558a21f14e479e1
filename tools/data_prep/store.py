"""Writes a generated data set to disk so that it can be killed, resumed and verified.

A data set is a folder with a `manifest.json`. The manifest is written first with the parameters
only (`complete: false`) and last with the SHA-256 of every file (`complete: true`). In between,
each finished file is recorded in a journal, `.journal-{split}.jsonl`, one line a file; a file gets
its final name only when it is whole, so whatever the journal names can be trusted after its
checksum was compared.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tqdm import tqdm

MANIFEST = "manifest.json"

Record = dict
"""What the maker of a file wants to remember of it (labels, boxes); JSON-serialisable."""

MakeFile = Callable[[int], tuple[str, bytes, Record]]
"""index -> (name inside the split's folder, content, record); must depend on nothing else."""


class DataSetError(ValueError):
    """The folder on disk is not the data set that was asked for."""


def digest(content: bytes) -> str:
    """SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Writes `content` under a temporary name, then renames: `path` is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def dump_json(value: object) -> bytes:
    """JSON bytes that depend on nothing but `value`."""
    return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()


def read_manifest(folder: Path) -> dict | None:
    """The manifest in `folder`, or None where there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise DataSetError(
            f"{path} is not JSON ({error}); use --overwrite to start afresh"
        ) from error
    missing = {"parameters", "complete", "files"} - set(manifest)
    if missing:
        raise DataSetError(f"{path} lacks {sorted(missing)}; use --overwrite to start afresh")
    return manifest


def open_folder(folder: Path, parameters: dict, *, overwrite: bool) -> bool:
    """Makes `folder` ready to be filled; True if it holds the complete data set already.

    Raises:
        DataSetError: the folder holds a set with other parameters, or files of unknown origin.
    """
    if overwrite and folder.exists():
        if read_manifest_quietly(folder) is None and any(folder.iterdir()):
            raise DataSetError(
                f"{folder} has no {MANIFEST}: it was not made by this tool, so "
                "--overwrite does not delete it; remove it by hand"
            )
        shutil.rmtree(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        if folder.exists() and any(folder.iterdir()):
            raise DataSetError(
                f"{folder} is not empty and has no {MANIFEST}; choose another --root or remove it"
            )
        write_manifest(folder, parameters, files={}, complete=False)
        return False
    found = manifest["parameters"]
    if found != parameters:
        differ = sorted(
            key for key in found.keys() | parameters.keys() if found.get(key) != parameters.get(key)
        )
        detail = ", ".join(
            f"{key}: on disk {found.get(key)!r}, asked for {parameters.get(key)!r}"
            for key in differ
        )
        raise DataSetError(
            f"{folder} was made with other parameters ({detail}); ask for the same "
            "ones, choose another --root, or use --overwrite to replace it"
        )
    return bool(manifest["complete"])


def read_manifest_quietly(folder: Path) -> dict | None:
    """Like `read_manifest`, but a damaged manifest counts as one: it marks the folder as ours."""
    try:
        return read_manifest(folder)
    except DataSetError:
        return {}


def write_manifest(
    folder: Path, parameters: dict, *, files: dict[str, str], complete: bool
) -> None:
    """Writes the manifest; `files` maps a path relative to `folder` to its SHA-256."""
    write_whole(
        folder / MANIFEST, dump_json(dict(parameters=parameters, complete=complete, files=files))
    )


def build_split(
    folder: Path, split: str, count: int, make: MakeFile, *, workers: int = 0
) -> tuple[list[Record], dict[str, str]]:
    """Makes the files 0..count-1 of one split, or those still missing.

    Args:
        folder: the data set's folder; files go to `folder/split/`.
        make: picklable if `workers` > 0. The result does not depend on `workers`.
        workers: processes beside this one; 0 means none.

    Returns:
        the records in order of index, and {path relative to folder: SHA-256}.
    """
    journal = folder / f".journal-{split}.jsonl"
    done = dict(_read_journal(journal, folder))
    if journal.exists():  # drops a torn last line and entries whose file has gone
        write_whole(journal, b"".join(_journal_line(entry) for entry in done.values()))
    todo = [index for index in range(count) if index not in done]
    with (
        open(journal, "ab") as log,
        tqdm(total=count, initial=len(done), unit="file", desc=f"{folder.name}/{split}") as bar,
    ):
        for entry in _produce(folder, split, todo, make, workers):
            log.write(_journal_line(entry))
            log.flush()
            done[entry["index"]] = entry
            bar.update()
    entries = [done[index] for index in range(count)]
    return (
        [entry["record"] for entry in entries],
        {entry["path"]: entry["sha256"] for entry in entries},
    )


def finish(folder: Path, parameters: dict, files: dict[str, str], texts: dict[str, bytes]) -> None:
    """Writes the annotation files `texts` and the complete manifest, and drops the journals."""
    for name, content in texts.items():
        write_whole(folder / name, content)
        files[name] = digest(content)
    write_manifest(folder, parameters, files=files, complete=True)
    for journal in folder.glob(".journal-*.jsonl"):
        journal.unlink()


def verify(folder: Path) -> dict:
    """Checks every file of a complete data set against its checksum; returns the manifest.

    Raises:
        FileNotFoundError: no data set in `folder`, or a file is missing.
        DataSetError: the set is unfinished, or a file has changed.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise FileNotFoundError(f"no data set in {folder}: {MANIFEST} is missing")
    if not manifest["complete"]:
        raise DataSetError(f"{folder} is unfinished; run prepare_data.py again to resume")
    for name, expected in tqdm(
        manifest["files"].items(), unit="file", desc=f"{folder.name}: check"
    ):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; rebuild with --overwrite")
        if digest(path.read_bytes()) != expected:
            raise DataSetError(f"{path} has changed since it was made; rebuild with --overwrite")
    return manifest


def _journal_line(entry: dict) -> bytes:
    return (json.dumps(entry, sort_keys=True) + "\n").encode()


def _read_journal(journal: Path, folder: Path) -> Iterator[tuple[int, dict]]:
    """Entries whose file is on disk with the recorded checksum."""
    if not journal.is_file():
        return
    for line in journal.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that was being written when the process was killed
        path = folder / entry["path"]
        if path.is_file() and digest(path.read_bytes()) == entry["sha256"]:
            yield entry["index"], entry


def _make_one(index: int, *, folder: Path, split: str, make: MakeFile) -> dict:
    name, content, record = make(index)
    write_whole(folder / split / name, content)
    return dict(index=index, path=f"{split}/{name}", sha256=digest(content), record=record)


def _produce(
    folder: Path, split: str, todo: list[int], make: MakeFile, workers: int
) -> Iterator[dict]:
    one = partial(_make_one, folder=folder, split=split, make=make)
    if workers == 0:
        yield from map(one, todo)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(one, todo, chunksize=8)
