"""collect_results.py: what the tables say, and that no figure in them can be changed by hand."""

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import collect_results
from collect import records, tables
from collect.differences import compare
from collect.published import Published, read_published
from collect.summary import summarize
from common.errors import UsageError
from common.schema import check_record, read_record
from record_samples import record, write

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = sorted(ROOT.glob("results/**/records/*.json"))
PUBLISHED = ROOT / "results/published.json"


@pytest.fixture
def folder(tmp_path):
    runs = [record("fp32", s, v, 2.0) for s, v in enumerate((0.50, 0.52, 0.54))]
    runs += [record("daq", s, v, 1.0) for s, v in enumerate((0.51, 0.52, 0.53))]
    return write(tmp_path / "records", *runs)


def summary_of(folder):
    return summarize(records.read_records([folder]))


def commands():
    """The collect_results.py commands of results/README.md, as lists of arguments."""
    text = (ROOT / "results/README.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("python tools/collect_results")]
    return [shlex.split(line)[2:] for line in lines]


def test_means_spreads_and_ratios(folder):
    table = summary_of(folder)
    assert list(table.method) == ["fp32", "daq"]
    daq = table.iloc[1]
    assert (daq["n"], daq["pairs"]) == (3, 3)
    assert daq["mean"] == pytest.approx(52.0)
    assert daq["std"] == pytest.approx(1.0)
    assert daq["difference"] == pytest.approx(0.0)
    assert daq["difference_std"] == pytest.approx(1.0)
    half = 4.302653 / math.sqrt(3)  # Student's t of 2 degrees of freedom, tabulated
    assert daq["high"] == pytest.approx(half, abs=1e-5)
    assert daq["low"] == pytest.approx(-half, abs=1e-5)
    assert daq["verdict"] == "not shown"
    assert daq["times_fp32"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.1, -0.1, 0.05, 0.0, -0.05], "equivalent"),
        ([0.2, 0.2, 0.21, 0.19, 0.2], "equivalent"),  # better than FP32, but by nothing that counts
        ([-2.0, -2.1, -1.9], "worse"),
        ([2.0, 2.1, 1.9], "better"),
        ([-2.0, 2.0, 0.5], "not shown"),
        ([0.0], "not shown"),
        ([0.1, 0.1], "not shown"),
        ([-5.0, -5.0], "not shown"),
        ([0.45, 0.55, 0.5], "better"),
    ],
)
def test_verdicts(differences, verdict):
    assert compare(differences).verdict == verdict
    assert compare([-d for d in differences]).verdict == {
        "better": "worse",
        "worse": "better",
    }.get(verdict, verdict)


def test_equivalence_is_decided_by_the_ninety_percent_interval():
    # t of 2 degrees of freedom, one-sided 5%: 2.919986; differences 0 +- d have std d.
    edge = 0.5 * math.sqrt(3) / 2.919986
    assert compare([0.0, edge * 0.999, -edge * 0.999]).verdict == "equivalent"
    assert compare([0.0, edge * 1.001, -edge * 1.001]).verdict == "not shown"
    assert compare([0.0, edge, -edge], margin=0.6).verdict == "equivalent"
    assert compare([]) is None


def test_only_the_same_seeds_are_paired(folder):
    write(folder, record("daq", 7, 0.9))
    (folder / "net-fp32-seed2.json").unlink()
    daq = summary_of(folder).iloc[1]
    assert (daq["n"], daq["pairs"]) == (4, 2)
    assert daq["difference"] == pytest.approx(0.5)


def test_changed_settings_are_cells_of_their_own(folder):
    for seed in range(3):
        fields = dict(settings={"mcs_lambda": 0.1}, label="mcs_lambda=0.1")
        write(folder, record("daq", seed, 0.6, **fields))
        for recipe, value in (("fp32", 0.7), ("daq", 0.8)):
            options = dict(options={"epochs": 9}, label="epochs=9")
            write(folder, record(recipe, seed, value, **options))
    table = summary_of(folder).set_index("method")
    assert len(table) == 5
    assert table.difference["daq, mcs_lambda=0.1"] == pytest.approx(8.0)
    assert table.difference["daq"] == pytest.approx(0.0)
    assert table.difference["daq, epochs=9"] == pytest.approx(10.0)


def test_precision_between_the_convolutions_is_compared_with_plain_fp32(folder):
    fields = dict(options={"optim_wrapper.type": "BF16OptimWrapper"}, label="bf16 between")
    for seed in range(3):
        write(folder, record("daq", seed, 0.7, **fields))
    table = summary_of(folder).set_index("method")
    fp32 = table["mean"]["fp32"]
    assert table.difference["daq, bf16 between"] == pytest.approx(70 - fp32)


def test_without_fp32_there_is_no_difference(tmp_path):
    table = summary_of(write(tmp_path / "r", record("daq"), record("paper")))
    assert table.difference.isna().all()
    assert "—" not in tables.markdown(tables.rows(table, Published()), [])


def test_files_splice_and_check(folder, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- t begin -->\nold\n<!-- t end -->\nb\n")
    arguments = [str(folder), "--out", str(tmp_path), "--name", "t", "--splice", str(readme)]
    assert collect_results.main([*arguments, "--check"]) == 1
    assert collect_results.main(arguments) == 0
    assert collect_results.main([*arguments, "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("a\n")
    assert text.endswith("b\n")
    assert "52.00 ± 1.00" in text
    assert "old" not in text
    assert len(pd.read_csv(tmp_path / "t.csv")) == 2
    subprocess.run(["sha256sum", "--quiet", "-c", "t.sha256"], cwd=tmp_path, check=True)
    (tmp_path / "none.md").write_text("")
    with pytest.raises(UsageError, match="none.md has no markers <!-- accuracy begin -->"):
        collect_results.main([str(folder), "--splice", str(tmp_path / "none.md")])


def test_figures_carry_the_fingerprint_of_their_records(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = [str(folder), "--out", str(tmp_path), "--name", "t", "--figures"]
    assert collect_results.main(arguments) == 0
    names = {path.name for path in tmp_path.glob("t_*")}
    assert names == {
        f"t_{name}.{kind}"
        for name in ("difference", "curves", "speed", "memory")
        for kind in ("svg", "png")
    }
    assert collect_results.main([*arguments, "--check"]) == 0
    (tmp_path / "t_memory.png").unlink()
    capsys.readouterr()
    assert collect_results.main([*arguments, "--check"]) == 1
    assert capsys.readouterr().out == f"out of date: {tmp_path / 't_memory.png'}\n"


def test_times_can_be_left_out(folder, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = [str(folder), "--out", str(tmp_path), "--name", "t", "--figures"]
    assert collect_results.main([*arguments, "--without-times"]) == 0
    assert not (tmp_path / "t_speed.svg").exists()
    assert "× fp32" not in (tmp_path / "t.md").read_text()
    assert "times_fp32" in (tmp_path / "t.csv").read_text()


def test_latex_is_a_complete_tabular(folder):
    table = summary_of(folder).assign(network="a_b & 50%")
    published = read_published(PUBLISHED)
    text = tables.latex(tables.rows(table, published), tables.notes(table, published))
    assert text.count("\\begin{") == text.count("\\end{") == 1
    assert r"a\_b \& 50\%" in text
    assert r"52.00 $\pm$ 1.00" in text
    lines = [line for line in text.splitlines() if line.endswith("\\\\")]
    columns = text.partition("tabular}{")[2].partition("}")[0]
    cells = {line.replace(r"\&", "").count("&") + 1 for line in lines}
    assert cells == {len(columns)}
    assert text.isascii()


def test_published_figures_stand_in_the_table_marked(folder, tmp_path):
    published = read_published(PUBLISHED)
    table = summary_of(folder)
    text = tables.markdown(
        tables.rows(table, published, times=False), tables.notes(table, published)
    )
    line = next(line for line in text.splitlines() if "76.59" in line)
    assert "paper †" in line
    assert "+0.09" in line
    assert "† published, not measured here: Zhao et al." in text
    (tmp_path / "t.csv").write_text(tables.csv(summary_of(folder), published))
    frame = pd.read_csv(tmp_path / "t.csv")
    assert set(frame.source[:2]) == {"measured"}
    assert frame.source[2:].str.contains("20").all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not a list of published figures"),
        ('{"sources": {}, "figures": [{"source": "x"}]}', "KeyError"),
        ('{"sources": {"x": "X"}, "figures": [{"source": "x", "acc": 1}]}', "acc"),
    ],
)
def test_wrong_published_figures(tmp_path, text, words):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_published(path)
    with pytest.raises(UsageError, match="do not exist"):
        read_published(tmp_path / "gone.json")


def test_wrong_records_are_told(tmp_path, folder, capsys):
    with pytest.raises(UsageError, match="no finished records"):
        records.read_records([write(tmp_path / "none", record(finished=False))])
    assert "unfinished" in capsys.readouterr().err
    copy = folder / "copy.json"
    for text, words in (
        (json.dumps(record("daq", 1)), "two records of net, daq, seed 1"),
        ("{", "copy.json is not valid JSON"),
        ("[]", "copy.json is not a JSON object"),
        ("{}", "lacks the fields"),
    ):
        copy.write_text(text)
        with pytest.raises(UsageError, match=words):
            records.read_records([folder])
    with pytest.raises(UsageError, match="does not exist"):
        records.read_records([tmp_path / "gone.json"])


def test_runs_with_different_metrics_are_never_compared(tmp_path):
    folder = write(tmp_path / "r", record("fp32"), record("daq", metric="pascal_voc/mAP"))
    words = "net on digits have different metrics: coco/bbox_mAP; pascal_voc/mAP"
    with pytest.raises(UsageError, match=words):
        records.read_records([folder])
    write(folder, record("fp32", metric="pascal_voc/mAP"))
    assert list(summary_of(folder).metric) == ["pascal_voc/mAP"] * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(value=0.6), "value=0.6, but coco/bbox_mAP=0.5 at the end of its curve"),
        (dict(final_metrics={"coco/bbox_mAP": 0.6}), "final_metrics that are not those of epoch 2"),
        (dict(curve=[]), "is finished, but has no curve"),
        (dict(curve=[{"epoch": 2, "loss": 1.0}]), "no curve with epochs 1 to 1"),
        (dict(curve=[{"epoch": 1}]), "no loss for epoch 1"),
        (dict(value=55.0), "must be between 0 and 1"),
        (dict(value="0.5"), "value='0.5', which is of a wrong type"),
        (dict(seed=True), "seed=True, which is of a wrong type"),
        (dict(seconds=-1.0), "seconds=-1.0, which must be greater than 0"),
        (dict(metric="acc/top1"), "allowed for detection: coco/bbox_mAP, pascal_voc/mAP"),
        (dict(task="speech"), "allowed: classification, detection, video"),
    ],
)
def test_records_that_contradict_themselves_are_refused(change, words):
    task = change.pop("task", None)
    changed = {**record(), **change, **({"task": task} if task else {})}
    with pytest.raises(ValueError) as error:
        check_record(changed)
    assert words in str(error.value)


def everywhere(found, new):
    """The record's result changed in all three places, so that it agrees with itself."""
    found["value"] = found["final_metrics"][found["metric"]] = new
    found["curve"][-1][found["metric"]] = new


@pytest.mark.parametrize(
    "edit",
    [
        lambda r: everywhere(r, r["value"] + 1e-9),
        lambda r: r["curve"][0].update(loss=r["curve"][0]["loss"] * 1.001),
        lambda r: r.update(peak_memory_mib=r["peak_memory_mib"] + 1),
        lambda r: r["versions"].update(torch="2.12.0"),
        lambda r: r["commit"].update(sha="1" * 40),
    ],
)
def test_an_edited_record_fails_the_check(edit, folder, tmp_path, capsys):
    arguments = [str(folder), "--out", str(tmp_path)]
    assert collect_results.main(arguments) == 0
    assert collect_results.main([*arguments, "--check"]) == 0
    victim = folder / "net-daq-seed1.json"
    changed = json.loads(victim.read_text())
    edit(changed)
    victim.write_text(json.dumps(changed, indent=1) + "\n")
    capsys.readouterr()
    assert collect_results.main([*arguments, "--check"]) == 1
    out = capsys.readouterr().out
    assert f"out of date: {tmp_path / 'accuracy.sha256'}" in out
    assert f"since the tables were made: {victim}" in out


def test_an_edited_value_of_a_committed_record_is_refused():
    for path in COMMITTED:
        changed = json.loads(path.read_text())
        changed["value"] += 0.001
        with pytest.raises(ValueError, match="at the end of its curve"):
            check_record(changed)


def test_committed_records_are_sound_and_all_in_a_manifest():
    assert COMMITTED
    known = {
        (manifest.parent / line.split("  ", 1)[1]).resolve()
        for manifest in ROOT.glob("results/**/*.sha256")
        for line in manifest.read_text().splitlines()
    }
    for path in COMMITTED:
        assert read_record(path)["finished"], path
        assert path.resolve() in known, f"{path} is in no table's manifest"


@pytest.mark.parametrize("arguments", commands(), ids=lambda a: a[0])
def test_committed_tables_and_documents_are_current(arguments, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    args = collect_results.parse_args(arguments)
    made = (args.out / f"{args.name}.sha256").exists()
    if not made and not any(path.exists() for path in args.records):
        pytest.skip(f"{arguments[0]} is not published yet: neither records nor tables are there")
    assert collect_results.main([*arguments, "--check"]) == 0, capsys.readouterr().out


def test_the_tables_need_no_torch():
    code = "import sys, collect_results, collect.report, collect.figures; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tools", capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr
    assert not {"torch", "mmengine"} & set(loaded.stdout.split())
