"""cuda_session: each step is run, limited and told, whatever became of those before it."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import bench_glue  # noqa: E402
import bench_ops  # noqa: E402
import bench_train  # noqa: E402
import compare_wgmma  # noqa: E402
import cuda_session  # noqa: E402
from bench import session_steps, side_by_side  # noqa: E402
from bench.modes import choose  # noqa: E402
from bench.session_steps import Step  # noqa: E402
from daq_mm import wgmma_switch  # noqa: E402

ROOT = TOOLS.parent
ARGUMENTS = {
    "tools/bench_train.py": bench_train.parse_args,
    "tools/bench_ops.py": bench_ops.parse_args,
    "tools/bench_glue.py": bench_glue.parse_args,
    "tools/compare_wgmma.py": compare_wgmma.parse_args,
}


@pytest.fixture
def session(monkeypatch, tmp_path):
    """Run a session of these steps on a card that is not there; its document and exit status."""

    def run(*steps, minutes="1", more=()):
        monkeypatch.setattr(cuda_session, "card", lambda: ("no-card", "9.0a"))
        monkeypatch.setattr(
            cuda_session, "steps", lambda architecture, batch, minutes=10: list(steps)
        )
        status = cuda_session.main(["--out", str(tmp_path), "--minutes", minutes, *more])
        return json.loads((tmp_path / "session.json").read_text()), status

    return run


def python(name, code, limit=30.0, **rest):
    return Step(name, ("-c", code), limit, "a test's step", **rest)


def test_goes_on_after_failures_and_tells_them(session, tmp_path, capsys):
    document, status = session(
        python("fails", "print('why'); raise SystemExit(3)"),
        python("hangs", "import time; print('begun', flush=True); time.sleep(60)", limit=1.0),
        python("misses", "", prefix=("no-such-program",)),
        python("works", "import os; print(os.environ['A'])", environment={"A": "{value}"}),
    )
    by_step = {record["step"]: record for record in document["steps"]}
    assert status == 1
    assert {name: record["status"] for name, record in by_step.items()} == {
        "fails": "failed",
        "hangs": "out of time",
        "misses": "left out",
        "works": "ok",
    }
    assert by_step["fails"]["exit_status"] == 3 and by_step["fails"]["tail"] == ["why"]
    assert "no-such-program" in by_step["misses"]["reason"]
    assert (tmp_path / "works.txt").read_text() == "{value}\n"
    assert "not ok: fails, hangs, misses" in capsys.readouterr().out


def test_steps_of_other_cards_are_not_run(session, tmp_path):
    document, status = session(
        python("hopper", "print(1)", architecture="9.0a"),
        python("other", "raise SystemExit(3)", architecture="8.9"),
    )
    assert [record["status"] for record in document["steps"]] == ["ok", "not for this card"]
    assert status == 0 and not (tmp_path / "other.txt").exists()


@pytest.mark.parametrize("fails", (True, False))
def test_what_a_failed_step_asks_for_holds_for_later_ones(session, tmp_path, fails):
    document, _ = session(
        python("probe", f"raise SystemExit({int(fails)})", otherwise={"DAQ_MM_WGMMA": "0"}),
        python("later", "import os; print(os.environ.get('DAQ_MM_WGMMA'))"),
    )
    probe, later = document["steps"]
    assert "environment" not in probe
    assert later.get("environment") == ({"DAQ_MM_WGMMA": "0"} if fails else None)
    assert (tmp_path / "later.txt").read_text() == ("0\n" if fails else "None\n")


def test_the_probe_of_wgmma_decides_for_all_that_use_it():
    names = [step.name for step in session_steps.steps("9.0a", 256)]
    (probe,) = [s for s in session_steps.steps("9.0a", 256) if s.otherwise]
    assert probe.name == names[1] and probe.architecture == "9.0a"
    assert probe.otherwise == {wgmma_switch.VARIABLE: "0"}
    args = compare_wgmma.parse_args(list(probe.command[1:]))
    assert args.set == "resnet50" and args.limit_seconds < probe.limit


def test_the_commit_of_files_without_a_repository_can_be_told(session, monkeypatch):
    monkeypatch.setenv("DAQ_MM_COMMIT", "")
    monkeypatch.setattr("common.provenance._git", lambda *arguments: None)
    document, _ = session(python("works", "print(1)"), more=("--commit", "abc123"))
    assert document["commit"] == {"sha": "abc123", "dirty": None}


def test_time_of_the_whole_session_is_limited(session):
    document, _ = session(python("late", "print(1)"), minutes="0")
    assert document["steps"][0]["status"] == "left out"


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), ("h100-80gb-hbm3", "9.0a")),
        ("NVIDIA GeForce RTX 4090", (8, 9), ("geforce-rtx-4090", "8.9")),
    ],
)
def test_card(monkeypatch, device, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert cuda_session.card() == expected


def benchmarks(batch=256, minutes=10):
    """Arguments of the benchmarks as the tools themselves read them, by step."""
    found = {}
    for step in session_steps.steps("9.0a", batch, minutes):
        tool, *arguments = step.command
        if tool in ARGUMENTS and step.name != "wgmma-probe":
            found[step.name] = ARGUMENTS[tool](arguments)
    return found


def test_the_order_is_by_worth():
    names = [step.name for step in session_steps.steps("9.0a", 256)]
    first = ["build", "wgmma-probe", "test", "train", "train-graph", "ops", "wgmma", "glue"]
    first += ["train-compile"]
    assert names[: len(first)] == first
    assert names.index("memcheck") == len(first)
    assert len(set(names)) == len(names)


def test_trainings_time_what_users_get_by_default_first():
    modes = {
        name: [mode.name for mode in choose(args.modes)]
        for name, args in benchmarks().items()
        if name.startswith("train")
    }
    assert modes["train"] == ["bf16", "int8-fused", "fp32", "int8-bf16"]
    assert modes["train-graph"] == ["bf16", "int8-fused", "int8-bf16"]
    assert modes["train-compile"] == ["bf16", "int8-fused", "bf16-compile"]
    assert all(names[0] == "bf16" for names in modes.values())  # each has its own baseline
    args = benchmarks()["train"]
    assert (args.model, args.size, args.device) == ("resnet50", 224, "cuda")
    assert not args.no_memory and args.memory_repeats == 1
    assert benchmarks()["train-graph"].cuda_graph
    assert all(a.no_memory for n, a in benchmarks().items() if n.startswith("train-"))


def test_the_batch_is_that_of_the_targets():
    assert cuda_session.parse_args([]).batch == 256
    for name, args in benchmarks().items():
        assert getattr(args, "batch", None) == 256 or args.size == [256, 256, 56, 56], name
    assert benchmarks(batch=8)["glue"].size == [8, 256, 56, 56]


@pytest.mark.parametrize("minutes", [5, 10, 60])
def test_limits_are_in_proportion_to_the_minutes(minutes):
    scale = minutes / 10
    ten = {step.name: step.limit for step in session_steps.steps("9.0a", 256)}
    now = {step.name: step.limit for step in session_steps.steps("9.0a", 256, minutes)}
    assert now.pop("build") == ten.pop("build") * max(1, scale)  # nothing runs without it
    assert now == pytest.approx({name: limit * scale for name, limit in ten.items()})
    inner, before = benchmarks(minutes=minutes), benchmarks()
    limited = [name for name, args in inner.items() if hasattr(args, "limit_seconds")]
    assert set(limited) == set(inner) - {"glue"}
    for name in limited:
        assert inner[name].limit_seconds == pytest.approx(before[name].limit_seconds * scale)
        assert inner[name].limit_seconds < now[name]  # so that it ends by itself


def test_results_go_to_a_file_each():
    files = [args.json for args in benchmarks().values()]
    assert len(set(files)) == len(files)
    assert Path("{out}/train_resnet50.json") in files and Path("{out}/glue.json") in files


def test_every_file_of_op_tests_is_run_and_checked():
    files = {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_ops_*.py")}
    by_name = {step.name: step for step in session_steps.steps("9.0a", 256)}
    assert set(by_name["test"].each) == set(by_name["memcheck"].each) == files
    assert "tests/test_ops_grad_weight.py" in by_name["racecheck"].each
    assert by_name["racecheck"].each == by_name["synccheck"].each
    for name in ("memcheck", "racecheck", "synccheck"):
        program, *options = by_name[name].prefix
        assert program == "compute-sanitizer" and options[options.index("--tool") + 1] == name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memcheck", "racecheck"])
def test_the_selection_for_the_sanitizer_has_tests_of_every_file(name, tmp_path):
    """Collected as on a machine without OpenMMLab's packages, where a session may run."""
    packages = ["mmdet", "mmcv", "mmengine", "mmaction"]
    hide = f"import sys\nsys.modules.update(dict.fromkeys({packages}))\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    step = next(step for step in session_steps.steps("9.0a", 256) if step.name == name)
    selection = step.command[step.command.index("-k") + 1]
    arguments = ["--collect-only", "-qq", "-p", "no:cacheprovider", "-k", selection, *step.each]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(line.split(": ") for line in done.stdout.splitlines() if ": " in line)
    assert set(counts) == set(step.each)


def test_commands_name_files_that_are_there():
    for step in session_steps.steps("9.0a", 8):
        names = [part for part in (*step.command, *step.each) if part.endswith(".py")]
        assert names and all((ROOT / name).is_file() for name in names)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on the PATH")
def test_make_rebuilds_for_every_kernel_source(tmp_path):
    for name in (".packages", ".built"):
        (tmp_path / name).touch()
    command = ["make", "--question", f"VENV={tmp_path}", str(tmp_path / ".built")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    for path in sorted(ROOT.glob("csrc/**/*.*")):
        if path.suffix == ".md":
            continue
        newer = [*command, "-W", str(path.relative_to(ROOT))]
        assert subprocess.run(newer, cwd=ROOT, capture_output=True).returncode == 1, path


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on the PATH")
def test_make_bench_cuda_runs_every_benchmark():
    done = subprocess.run(["make", "--just-print", "bench-cuda"], cwd=ROOT, capture_output=True,
                          text=True)  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if "tools/cuda_session.py" in line)
    args = cuda_session.parse_args(line.split("tools/cuda_session.py")[1].split())
    assert set(args.steps) == set(benchmarks())
    assert args.minutes == 60 and args.batch == 256


# ---- processes side by side ----


def test_parts_of_a_step_run_side_by_side_and_fail_alone(session, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_session.os, "cpu_count", lambda: 6)
    code = (
        "import pathlib, sys, time\n"
        "name, = sys.argv[1:]\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / (name + '.begun')).touch()\n"
        "while len(list(folder.glob('*.begun'))) < 3:\n"
        "    time.sleep(0.01)\n"  # for ever, unless all three run at once
        "print('this is', name)\n"
        "sys.exit(4 if name == 'b' else 0)\n"
    )
    document, status = session(python("parts", code, each=("a", "b", "c")))
    (record,) = document["steps"]
    assert status == 1 and record["status"] == "failed" and record["exit_status"] == 4
    assert record["parts"] == {"parts-a": 0, "parts-b": 4, "parts-c": 0}
    assert (tmp_path / "parts-c.txt").read_text() == "this is c\n"
    assert record["tail"] == [
        *("-- parts-a", "this is a", "-- parts-b", "this is b", "-- parts-c", "this is c")
    ]


def test_no_more_workers_than_allowed(tmp_path):
    code = (
        "import os, pathlib, sys, time\n"
        "mine = pathlib.Path(sys.argv[1]); mine.touch(); time.sleep(0.2)\n"
        "count = len(list(mine.parent.glob('*.running')))\n"
        "mine.unlink(); sys.exit(count)\n"
    )
    commands = {
        tmp_path / f"{i}.txt": [sys.executable, "-c", code, str(tmp_path / f"{i}.running")]
        for i in range(4)
    }
    found = side_by_side.run_all(
        commands, seconds=60, workers=1, folder=tmp_path, environment=dict(os.environ)
    )
    assert list(found.values()) == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="workers=0 must be at least 1"):
        side_by_side.run_all({}, seconds=1, workers=0, folder=tmp_path, environment={})


def test_the_children_of_what_is_out_of_time_end_too(session, tmp_path):
    child = f"import time; time.sleep(2); open({str(tmp_path / 'alive')!r}, 'w')"
    code = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "import time; time.sleep(60)\n"
    )
    document, _ = session(python("hangs", code, limit=1.0))
    assert document["steps"][0]["status"] == "out of time"
    time.sleep(3)
    assert not (tmp_path / "alive").exists()


def test_what_never_began_is_told(session, monkeypatch):
    monkeypatch.setattr(cuda_session.os, "cpu_count", lambda: 1)
    code = "import sys, time; time.sleep(60 if sys.argv[1] == 'a' else 0)"
    document, _ = session(python("parts", code, limit=1.0, each=("a", "b")))
    (record,) = document["steps"]
    assert record["status"] == "out of time"
    assert record["parts"] == {"parts-a": None, "parts-b": None}
    assert record["tail"][-1] == "never begun"


def test_the_archive_has_the_results_after_every_step(session, tmp_path):
    archive = tmp_path / "session.tar.gz"
    last = f"import tarfile; print(tarfile.open({str(archive)!r}).getnames())"
    session(python("first", "print(1)"), python("last", last), more=("--archive", str(archive)))
    names = (tmp_path / "last.txt").read_text()
    assert "first.txt" in names and "session.json" in names
    with tarfile.open(archive) as tar:
        inside = {Path(name).name for name in tar.getnames()}
    assert inside == {tmp_path.name, "first.txt", "last.txt", "session.json"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="sees no CUDA device.*needs a GPU"):
        cuda_session.main([])
