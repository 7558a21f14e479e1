"""daq_mm.autotune: settings, the files on disk, what becomes of bad ones. No kernel runs here."""

import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from daq_mm import DAQHook, autotune, autotune_cache, ops
from daq_mm.autotune_cache import FIELDS, KEY_FIELDS, Kind

H100 = Kind("NVIDIA H100 80GB HBM3", "9.0", 132, 1, "13.0")
A100 = Kind("NVIDIA A100-SXM4-40GB", "8.0", 108, 1, "13.0")


class Library:
    """The ops of csrc/cuda/ops_tune.cpp in Python."""

    def __init__(self):
        self.tables, self.tuning = {}, False

    def tune_plans(self, value):
        self.tuning, before = value, self.tuning
        return before

    def plan_table(self, device):
        return autotune_cache.to_numbers(self.tables.get(device, {}))

    def load_plans(self, device, numbers):
        self.tables.setdefault(device, {}).update(autotune_cache.from_numbers(numbers))

    def clear_plans(self):
        self.tables.clear()


def key(seed):
    """A key that differs by its batch."""
    return (0, 1 + seed, *([1] * (len(KEY_FIELDS) - 2)))


def choices(*seeds, tile=1, splits=2):
    return {key(seed): (tile, splits) for seed in seeds}


@pytest.fixture
def library(monkeypatch):
    """Kernels on one H100 that are not there."""
    library = Library()
    monkeypatch.setattr(autotune, "_library", lambda: library)
    monkeypatch.setattr(autotune, "_gpus", lambda: [autotune._Gpu(0, H100)])
    yield library
    autotune.disable()


def test_round_trip(library, tmp_path):
    with autotune.enable(tmp_path / "made"):
        assert library.tuning and autotune.enabled()
        library.load_plans(0, autotune_cache.to_numbers(choices(0, 1)))
        assert autotune.save() == 2 and autotune.save() == 0
        library.load_plans(0, autotune_cache.to_numbers(choices(2)))
    assert not library.tuning and not library.tables and not autotune.enabled()
    (file,) = (tmp_path / "made").glob("*.json")
    assert file.name == "nvidia-h100-80gb-hbm3_sm9.0_132sms_cuda13.0_k1.json"
    document = json.loads(file.read_text())
    assert document["gpu"] == H100.gpu and document["fields"] == list(FIELDS)
    assert autotune_cache.load(tmp_path / "made", H100) == choices(0, 1, 2)
    autotune.enable(tmp_path / "made", measure=False)
    assert not library.tuning and library.tables[0] == choices(0, 1, 2)
    assert [entry["n"] for entry in autotune.choices()] == [1, 2, 3]
    assert autotune.choices()[0]["tile"] == "128x64" and autotune.choices()[0]["device"] == 0


def test_without_measuring_nothing_is_written(library, tmp_path):
    with autotune.enable(tmp_path / "none", measure=False):
        library.load_plans(0, autotune_cache.to_numbers(choices(0)))
        assert autotune.save() == 0
    assert not (tmp_path / "none").exists()


def test_enabling_again_ends_the_earlier_session(library, tmp_path):
    autotune.enable(tmp_path / "a")
    library.load_plans(0, autotune_cache.to_numbers(choices(0)))
    autotune.enable(tmp_path / "b")
    assert autotune_cache.load(tmp_path / "a", H100) == choices(0)
    assert not library.tables.get(0) and library.tuning


def test_each_gpu_has_its_own_file(library, tmp_path, monkeypatch):
    two = [autotune._Gpu(0, H100), autotune._Gpu(1, A100)]
    monkeypatch.setattr(autotune, "_gpus", lambda: two)
    with autotune.enable(tmp_path):
        library.load_plans(1, autotune_cache.to_numbers(choices(5)))
    assert autotune_cache.load(tmp_path, A100) == choices(5)
    assert autotune_cache.load(tmp_path, H100) == {}
    with autotune.enable(tmp_path):
        assert library.tables[1] == choices(5) and not library.tables[0]


@pytest.mark.parametrize(
    "text, reason",
    (
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[1, 2]", "no JSON object"),
        ("{}", "its format is None, and 1 is expected"),
        (b"\xff\xfe\x00", "codec can't decode"),
    ),
)
def test_a_corrupt_file_is_told_and_moved_aside(library, tmp_path, text, reason):
    file = tmp_path / H100.file_name()
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.warns(UserWarning, match=reason) as caught:
        autotune.enable(tmp_path)
    assert str(file) in str(caught[0].message)
    assert not file.exists() and (tmp_path / f"{file.name}.bad").exists()
    library.load_plans(0, autotune_cache.to_numbers(choices(0)))
    autotune.disable()
    assert autotune_cache.load(tmp_path, H100) == choices(0)


@pytest.mark.parametrize(
    "change, reason",
    (
        (dict(gpu="NVIDIA L4"), "its gpu is 'NVIDIA L4', and 'NVIDIA H100 80GB HBM3' is expected"),
        (dict(kernels=7), "its kernels is 7"),
        (dict(cuda="12.4"), "its cuda is '12.4'"),
        (dict(format=2), "its format is 2"),
        (dict(fields=["product"]), "its fields is"),
        (dict(choices={}), "no list of choices"),
        (dict(choices=[[1, 2]]), r"one of its choices is \[1, 2\]; expected 28 numbers"),
        (dict(choices=[[*key(0), 1, -1]]), "expected 28 numbers"),
        (dict(choices=[[*key(0), 1, 2**40]]), "expected 28 numbers"),
        (dict(choices=[[*key(0), 1, True]]), "expected 28 numbers"),
        (dict(choices=[[*key(0), 8, 1]]), "has tile 8, which is unknown"),
        (dict(choices=[[3, *key(0)[1:], 1, 1]]), "has product 3, which is unknown"),
    ),
)
def test_a_foreign_file_is_told_and_moved_aside(tmp_path, change, reason):
    autotune_cache.add(tmp_path, H100, choices(0))
    file = tmp_path / H100.file_name()
    document = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps(document))
    with pytest.warns(UserWarning, match=reason):
        assert autotune_cache.load(tmp_path, H100) == {}
    assert json.loads((tmp_path / f"{file.name}.bad").read_text()) == document
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert autotune_cache.load(tmp_path, H100) == {}


def test_a_new_choice_replaces_that_of_the_same_product(tmp_path):
    autotune_cache.add(tmp_path, H100, choices(0, 1))
    autotune_cache.add(tmp_path, H100, choices(1, tile=2))
    assert autotune_cache.load(tmp_path, H100) == {**choices(0), **choices(1, tile=2)}


def _add_some(folder, first):
    for seed in range(first, first + 15):
        autotune_cache.add(folder, H100, choices(seed))


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    """Each adds to what the others wrote meanwhile; nobody reads half a file."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add_some, args=(tmp_path, 15 * i)) for i in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        autotune_cache.load(tmp_path, H100)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert autotune_cache.load(tmp_path, H100) == choices(*range(45))
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.bad"))


@pytest.mark.parametrize(
    "variables, expected",
    (
        (dict(DAQ_MM_CACHE="/a/b", XDG_CACHE_HOME="/x", HOME="/h"), "/a/b"),
        (dict(DAQ_MM_CACHE="~/c", XDG_CACHE_HOME="/x", HOME="/h"), "/h/c"),
        (dict(XDG_CACHE_HOME="/x", HOME="/h"), "/x/daq_mm"),
        (dict(DAQ_MM_CACHE="", XDG_CACHE_HOME="", HOME="/h"), "/h/.cache/daq_mm"),
    ),
)
def test_default_folder(monkeypatch, variables, expected):
    for name in ("DAQ_MM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert autotune_cache.default_folder() == Path(expected)


@pytest.mark.parametrize(
    "settings, message",
    (
        (dict(cache=3), "cache=3 is not allowed: a folder's path, or None"),
        (dict(cache=True), "cache=True is not allowed"),
        (dict(measure="yes"), "measure='yes' is not allowed: True or False"),
        (dict(measure=1), "measure=1 is not allowed"),
    ),
)
def test_wrong_settings_are_named(library, settings, message):
    with pytest.raises(ValueError, match=message):
        autotune.enable(**settings)
    assert not autotune.enabled()


def test_without_kernels_or_a_gpu_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(ops, "kernels_built", lambda device: (False, "rebuild it so"))
    with pytest.raises(RuntimeError, match="measures the CUDA kernels: rebuild it so"):
        autotune.enable(tmp_path)
    monkeypatch.setattr(ops, "kernels_built", lambda device: (True, ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no CUDA device here.*or leave it off"):
        autotune.enable(tmp_path)


def test_off_it_does_nothing():
    assert autotune.save() == 0 and autotune.choices() == [] and not autotune.enabled()
    autotune.disable()


def test_a_cache_that_cannot_be_written_switches_off_all_the_same(library, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("read-only")

    autotune.enable(tmp_path)
    library.load_plans(0, autotune_cache.to_numbers(choices(0)))
    monkeypatch.setattr(autotune_cache, "add", fail)
    with pytest.warns(UserWarning, match="is lost: read-only"):
        autotune._save_at_exit()
    with pytest.raises(OSError, match="read-only"):
        autotune.disable()
    assert not autotune.enabled() and not library.tuning


@pytest.mark.parametrize("value", ("2", "yes", "", "true"))
def test_the_variable_is_checked(monkeypatch, value):
    monkeypatch.setenv(autotune.VARIABLE, value)
    with pytest.raises(ValueError, match=f"DAQ_MM_AUTOTUNE='{value}' is not allowed: 0 or 1"):
        autotune.enable_from_environment()


def test_the_variable_enables_when_cuda_is_first_used(library, tmp_path, monkeypatch):
    waiting = []
    monkeypatch.setattr(ops, "kernels_built", lambda device: (True, ""))
    monkeypatch.setattr(torch.cuda, "_lazy_call", waiting.append)
    monkeypatch.setenv("DAQ_MM_CACHE", str(tmp_path))
    monkeypatch.setenv(autotune.VARIABLE, "0")
    autotune.enable_from_environment()
    assert not waiting
    monkeypatch.setenv(autotune.VARIABLE, "1")
    autotune.enable_from_environment()
    assert not autotune.enabled()
    waiting[0]()
    assert autotune.enabled() and library.tuning


@pytest.mark.skipif(ops.kernels_built("cuda")[0], reason="for builds without CUDA kernels")
def test_importing_says_that_the_variable_has_no_effect():
    code = "import daq_mm, torch; print(torch.cuda.is_initialized(), daq_mm.autotune.enabled())"
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, autotune.VARIABLE: "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert child.stdout == "False False\n"
    assert "DAQ_MM_AUTOTUNE=1 has no effect: daq_mm._C was" in child.stderr


def test_the_hook_checks_its_setting():
    with pytest.raises(ValueError, match="autotune='yes' is not allowed: True or False"):
        DAQHook(autotune="yes")
