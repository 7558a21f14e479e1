"""cuda_session: each step is run, limited and told, whatever became of those before it."""

import json
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import cuda_session  # noqa: E402
from cuda_session import Step  # noqa: E402


@pytest.fixture
def session(monkeypatch, tmp_path):
    """Run a session of these steps on a card that is not there; its document and exit status."""

    def run(*steps, minutes="1"):
        monkeypatch.setattr(cuda_session, "card", lambda: ("no-card", "9.0a"))
        monkeypatch.setattr(cuda_session, "steps", lambda architecture, batch: list(steps))
        status = cuda_session.main(["--out", str(tmp_path), "--minutes", minutes])
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


def test_steps_name_tools_that_are_there():
    commands = [step.command for step in cuda_session.steps("9.0a", 8)]
    files = [part for command in commands for part in command if part.endswith(".py")]
    assert "tests/test_ops_quantize.py" in files and "tools/bench_train.py" in files
    assert "tools/compare_wgmma.py" in files
    by_bench_ops = [command for command in commands if "tools/bench_ops.py" in command]
    assert ["--autotune" in command for command in by_bench_ops] == [False, True]
    assert len({command[-1] for command in by_bench_ops}) == 2  # a file each
    assert all((TOOLS.parent / name).is_file() for name in files)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="sees no CUDA device.*needs a GPU"):
        cuda_session.main([])
