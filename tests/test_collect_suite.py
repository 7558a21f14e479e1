"""collect_results.py on a suite that is partly trained: missing runs, matrices, ablation."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import collect_results
from collect import curves, figures, matrices, records, summary, tables
from collect.published import Published, read_published
from collect.suite import expected_runs
from common.errors import UsageError
from common.schema import METRICS
from daq_mm.config import RECIPES, DAQConfig
from record_samples import record, write
from suite_runner.cells import read_suite
from test_report import Page, browse, needs_chromium

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK = ROOT / "tools/suites/benchmark.json"


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    """Suites name their configs from the repository's root."""
    monkeypatch.chdir(ROOT)


def made(run, value, **fields):
    """A record of a run of a suite, as tools/train.py would name its fields."""
    task = Path(run.config).parent.name
    network = Path(run.config).stem.removesuffix("_fp32")
    names = dict(task=task, network=network, dataset=f"digits_{task}", config=run.config)
    names |= dict(settings=dict(run.settings), options=run.config_options(), label=run.label)
    return record(run.recipe, run.seed, value, **names, **fields)


def small_suite(tmp_path):
    """Two networks: ResNet-18 by three methods, RetinaNet by two and one more with settings."""
    suite = tmp_path / "suite.json"
    cells = [
        dict(
            config="configs/classification/resnet18_digits_fp32.py",
            recipes=["fp32", "daq", "dorefa"],
            seeds=[0, 1, 2],
        ),
        dict(
            config="configs/detection/retinanet_r18_fpn_digits_fp32.py",
            recipes=["fp32", "daq"],
            seeds=[0, 1],
        ),
        dict(
            config="configs/detection/retinanet_r18_fpn_digits_fp32.py",
            recipes=["daq"],
            seeds=[0, 1],
            settings={"mcs_k": 1.1},
        ),
    ]
    suite.write_text(json.dumps({"about": "", "cells": cells}))
    return suite


def partly(tmp_path, suite, keep):
    """Records of the suite's runs that `keep` says yes to."""
    runs = [run for run in read_suite(suite) if keep(run)]
    return write(tmp_path / "records", *(made(run, 0.5 + run.seed / 100) for run in runs))


def table_of(folder, *suites):
    frame = records.read_records([folder])
    expected = expected_runs(list(suites), frame) if suites else None
    return frame, summary.summarize(frame, expected=expected)


def test_missing_runs_are_told_cell_by_cell(tmp_path):
    suite = small_suite(tmp_path)
    folder = partly(
        tmp_path,
        suite,
        lambda run: "resnet18" in run.config and run.recipe != "dorefa" and run.seed < 2,
    )
    _, table = table_of(folder, suite)
    found = {(r.network, r.method): (r.n, r.missing) for r in table.itertuples()}
    assert found == {
        ("resnet18_digits", "fp32"): (2, 1),
        ("resnet18_digits", "daq"): (2, 1),
        ("resnet18_digits", "dorefa, unfused"): (0, 3),
        ("retinanet_r18_fpn_digits", "fp32"): (0, 2),
        ("retinanet_r18_fpn_digits", "daq"): (0, 2),
        ("retinanet_r18_fpn_digits", "daq, mcs_k=1.1"): (0, 2),
    }
    rows = {(r["network"], r["method"]): r for r in tables.rows(table, Published())}
    empty = rows["resnet18_digits", "dorefa, unfused"]
    assert (empty["seeds"], empty["value, points"], empty["peak MiB"]) == ("0 of 3", "—", "—")
    assert (empty["metric"], empty["verdict"]) == ("accuracy/top1", "")
    assert rows["resnet18_digits", "daq"]["seeds"] == "2 of 3"
    assert tables.notes(table, Published())[0].startswith("11 of the suite's runs are missing")


def test_a_complete_suite_misses_nothing_and_other_runs_stay(tmp_path):
    suite = small_suite(tmp_path)
    folder = partly(tmp_path, suite, lambda run: True)
    write(folder, record("paper", 7, 0.4, network="other"))
    _, table = table_of(folder, suite)
    assert not table.missing.any() and "other" in set(table.network)
    assert not any("missing" in note for note in tables.notes(table, Published()))
    pd.testing.assert_frame_equal(table, table_of(folder)[1], check_dtype=False)


def test_check_tells_when_a_run_arrives_or_goes(tmp_path, capsys):
    suite = small_suite(tmp_path)
    folder = partly(tmp_path, suite, lambda run: run.seed == 0)
    arguments = [str(folder), "--suite", str(suite), "--out", str(tmp_path / "out"), "--matrices"]
    assert collect_results.main(arguments) == 0
    assert collect_results.main([*arguments, "--check"]) == 0
    victim = folder / "resnet18_digits-daq-seed0.json"
    text = victim.read_text()
    victim.unlink()
    capsys.readouterr()
    assert collect_results.main([*arguments, "--check"]) == 1
    out = capsys.readouterr().out
    assert f"changed, new or gone since the tables were made: {tmp_path / 'out'}" in out
    assert victim.name in out and "accuracy_methods.md" in out
    victim.write_text(text)
    assert collect_results.main([*arguments, "--check"]) == 0


def test_the_published_suite_can_be_shown_from_its_first_record(tmp_path):
    """With one record of the benchmark, every one of its cells has a row."""
    runs = read_suite(BENCHMARK)
    folder = write(tmp_path / "records", made(runs[0], 0.5))
    frame, table = table_of(folder, BENCHMARK)
    cells = {run.cell for run in runs}
    assert len(table) == len(cells)
    assert int(table.missing.sum()) == len(runs) - 1
    assert set(table.task) <= set(METRICS)
    rows, _ = matrices.methods(table)
    assert len(rows) == table.network.nunique()
    assert figures.names(frame, table) == ["curves", "memory"]


@pytest.mark.parametrize("recipe", ["fp32", "bf16", *sorted(RECIPES)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"fuse": False},
        {"gradient_bits": 5},
        {"weight_bits": 4},
        {"activation_bits": 7},
        {"mcs_k": 1.1},
        {"grad_weight": "float", "gradient_zero": True},
        {"grad_weight": "channel", "gradient_zero": True},
        {"grad_input": "sample", "gradient_zero": True},
    ],
    ids=str,
)
def test_unfused_is_what_the_package_says(recipe, settings):
    found = records.is_unfused(recipe, settings)
    if recipe in RECIPES:
        config = DAQConfig.from_recipe(recipe, **settings)
        assert found == (not (config.fuse and config.suits_units()))
    else:
        assert not found


def test_unfused_methods_are_marked_and_explained(tmp_path):
    runs = [record(recipe) for recipe in ("fp32", "daq", "dorefa", "switchback")]
    runs += [record("daq", settings={"fuse": False}, label="fuse=False")]
    runs += [record("daq", settings={"gradient_bits": 5}, label="gradient_bits=5")]
    _, table = table_of(write(tmp_path / "r", *runs))
    assert set(table.method) == {
        *("fp32", "daq", "dorefa, unfused", "switchback, unfused"),
        *("daq, fuse=False", "daq, gradient_bits=5, unfused"),
    }
    text = tables.markdown(tables.rows(table, Published()), tables.notes(table, Published()))
    assert "unfused: computed layer by layer" in text
    alone = table[table.method.isin(("fp32", "daq"))]
    assert not any("unfused" in note for note in tables.notes(alone, Published()))


def test_matrix_of_networks_by_methods(tmp_path):
    runs = []
    for seed, noise in enumerate((0.0, 0.01, 0.02)):
        runs += [record("fp32", seed, 0.5 + noise), record("daq", seed, 0.5 + noise + 0.02)]
        runs += [record("paper", seed, 0.5 + noise - 0.03), record("gvq", seed, 0.5 + noise)]
        runs += [record("daq", seed, 0.9, settings={"mcs_k": 1.1}, label="mcs_k=1.1")]
    runs += [record("daq", 0, 0.3, network="alone")]
    _, table = table_of(write(tmp_path / "r", *runs))
    rows, notes = matrices.methods(table)
    assert [row["network"] for row in rows] == ["alone", "net"]
    assert rows[1] == {
        **dict(task="detection", network="net", fp32="51.00 ± 1.00", paper="-3.00 ± 0.00 ↓"),
        **dict(daq="+2.00 ± 0.00 ↑", gvq="+0.00 ± 0.00 ≈"),
    }
    assert (rows[0]["daq"], rows[0]["fp32"]) == ("30.00, no FP32", "")
    assert "not asked for" in notes[0]
    text = tables.latex(rows, notes)
    assert text.isascii() and r"$\uparrow$" in text and r"$\approx$" in text


def test_methods_have_a_mean_over_networks(tmp_path):
    gains = {"a": (0.01, 0.02, 0.03), "b": (-0.01, 0.0, 0.01), "c": (0.03, 0.04, 0.05)}
    runs = [record("fp32", seed, 0.5, network=n) for n in (*gains, "partly") for seed in range(3)]
    for network, found in gains.items():
        runs += [record("daq", s, 0.5 + gain, network=network) for s, gain in enumerate(found)]
    runs += [record("paper", s, 0.5, network="a") for s in range(3)]
    runs += [record("daq", seed, 0.9, network="partly") for seed in (3, 4, 5)]  # no pair
    _, table = table_of(write(tmp_path / "r", *runs))
    last = matrices.methods(table)[0][-1]
    # of 2, 0 and 4 points: 2 +- 4.303 * 2 / sqrt(3); one network alone has no mean
    assert last == {
        **dict(task="all", network="mean over networks", fp32="", paper=""),
        "daq": "+2.00 [-2.97, +6.97] (3)",
    }


def test_ablation_is_paired_with_global_and_pooled_over_networks(tmp_path):
    gains = {"a": (0.01, 0.02, 0.03), "b": (-0.01, 0.0, 0.04)}
    runs = []
    for network, found in gains.items():
        for seed, gain in enumerate(found):
            base = 0.5 + 0.1 * seed
            runs.append(record("global", seed, base, network=network))
            runs.append(record("gvq", seed, base + gain, network=network))
    runs.append(record("mcs", 5, 0.9, network="a"))  # a seed that 'global' has not
    runs.append(record("gvq", 0, 0.9, network="without global"))
    frame, _ = table_of(write(tmp_path / "r", *runs))
    rows, notes = matrices.ablation(frame, read_published(ROOT / "results/published.json"))
    by = {(row["network"], row["method"]): row for row in rows}
    assert "without global" not in {network for network, _ in by}
    one = by["a", "gvq"]
    assert one["against global"] == "+2.00 ± 1.00"
    low, high = stats.t.interval(0.95, 2, 2.0, 1 / np.sqrt(3))
    assert one["95% interval"] == f"{low:+.2f} to {high:+.2f}"
    assert by["a", "mcs"]["against global"] == ""
    pooled = by["2 networks", "gvq"]
    assert pooled["against global"] == f"+1.50 ± {np.std([2, 1], ddof=1):.2f}"
    assert ("2 networks", "mcs") not in by
    assert [row["against global"] for row in rows if "†" in row["method"]] == [
        *("+0.30", "+0.33", "+0.53")
    ]
    assert any(note.startswith("† published, not measured here") for note in notes)
    assert matrices.ablation(frame[frame.recipe != "global"], Published()) == ([], [])


def test_matrices_are_spliced_where_a_document_asks_for_them(tmp_path):
    suite = small_suite(tmp_path)
    folder = partly(tmp_path, suite, lambda run: run.seed == 0)
    document = tmp_path / "d.md"
    markers = [f"<!-- {n} begin -->\n<!-- {n} end -->" for n in ("accuracy", "accuracy_methods")]
    document.write_text("\n".join(markers))
    arguments = [str(folder), "--out", str(tmp_path), "--splice", str(document), "--matrices"]
    assert collect_results.main(arguments) == 0
    text = document.read_text()
    assert (tmp_path / "accuracy_methods.md").read_text().strip() in text
    assert not (tmp_path / "accuracy_ablation.md").exists()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The whole benchmark, trained but for one cell, with curves of 30 epochs."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        every = read_suite(BENCHMARK)
    left_out = ("c3d_digits_fp32", "daq", "")
    runs = [run for run in every if (Path(run.config).stem, run.recipe, run.label) != left_out]
    made_up = []
    for run in runs:
        value = 0.6 + 0.02 * rng.standard_normal()
        found = made(run, value)
        metric = found["metric"]
        found["curve"] = [
            {"epoch": e, "iteration": 9 * e, "loss": 3 / e, metric: value * e / 30}
            for e in range(1, 30)
        ] + [{"epoch": 30, "iteration": 270, "loss": 0.1, metric: value}]
        made_up.append(found)
    write(folder / "records", *made_up)
    arguments = [str(folder / "records"), "--suite", str(BENCHMARK), "--out", str(folder)]
    arguments += ["--published", "results/published.json", "--matrices"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert collect_results.main([*arguments, "--html", str(folder / "report.html")]) == 0
    return folder


def test_the_whole_benchmark_makes_a_report_of_less_than_ten_megabytes(large):
    file = large / "report.html"
    assert file.stat().st_size < 10e6
    page = Page(file.read_text())
    assert len(page.ids) == len(set(page.ids))
    assert {"results", "methods", "ablation", "runs", "published"} <= set(page.ids)
    text = file.read_text()
    assert "3</b><span>runs of the suite missing" in text
    assert re.search(r">0 of 3<", text)


def test_figures_of_the_whole_benchmark_are_split_by_task(large):
    frame, table = table_of(large / "records", BENCHMARK)
    names = figures.names(frame, table)
    tasks = [f"curves_{task}" for task in ("classification", "detection", "video")]
    assert names == [*tasks, "curves_methods", "difference", "speed", "memory"]
    drawn = figures.draw("difference", frame, table)
    panels = [axes for axes in drawn.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["classification", "detection", "video"]
    shown = [label.get_text().replace("\n", "") for a in panels for label in a.get_yticklabels()]
    assert sorted(shown) == sorted(set(table[table.difference.notna()].network))
    for axes in panels:  # lines of text must not run into each other
        places = np.diff(sorted(axes.get_yticks()))
        inches = places * drawn.get_figheight() * 0.7 / np.ptp(axes.get_ylim())
        assert inches.min() > 0.2
    methods = curves.draw("curves_methods", frame)
    titles = {axes.get_title() for axes in methods.axes} - {""}
    assert titles == {n for n, g in frame.groupby("network") if g.recipe.nunique() > 4}


def visible(dom, table):
    """First three cells of the rows of a table that are not hidden."""
    body = dom.partition(f'id="{table}"')[2].partition("</table>")[0].partition("<tbody>")[2]
    rows = re.findall(r"<tr ([^>]*)>(.*?)</tr>", body, re.DOTALL)
    cells = [
        re.findall(r"<td[^>]*>(.*?)</td>", row)[:3] for data, row in rows if "hidden" not in data
    ]
    return cells


@needs_chromium
def test_filters_reach_the_further_tables(large, tmp_path):
    html = (large / "report.html").read_text()
    dom = browse(html, tmp_path, state="task=video&method=gvq")
    assert {cells[0] for cells in visible(dom, "methods")} == {"video"}
    configs = {run.config for run in read_suite(BENCHMARK)}
    assert len(visible(dom, "methods")) == sum("/video/" in config for config in configs)
    assert {(c[0], c[2]) for c in visible(dom, "ablation")} == {("video", "gvq")}
    dom = browse(html, tmp_path, state="sort=methods:2:descending")
    *networks, over_networks = visible(dom, "methods")
    values = [float(cells[2].split()[0]) for cells in networks]
    assert values == sorted(values, reverse=True) and len(values) == len(configs)
    assert over_networks == ["all", "mean over networks", ""]


def test_other_networks_can_be_left_out(tmp_path, capsys):
    suite = small_suite(tmp_path)
    folder = tmp_path / "records"
    write(folder, *(made(run, 0.8) for run in read_suite(suite) if run.seed == 0))
    arguments = [str(folder), "--suite", str(suite), "--out", str(tmp_path), "--name", "t"]
    names = ["--networks", "resnet18_digits"]
    assert collect_results.main([*arguments, *names]) == 0
    text = (tmp_path / "t.md").read_text()
    assert "resnet18_digits" in text
    assert "retinanet" not in text
    assert len((tmp_path / "t.sha256").read_text().splitlines()) == 3
    assert collect_results.main([*arguments, *names, "--check"]) == 0
    assert collect_results.main([*arguments, "--check"]) == 1
    with pytest.raises(UsageError, match="no record is of network 'resnet81'; there are: resnet18"):
        collect_results.main([*arguments, "--networks", "resnet81"])
    capsys.readouterr()
