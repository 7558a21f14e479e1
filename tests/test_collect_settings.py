"""What changed settings do to a recipe: the table, the values that a figure shows, the files."""

import dataclasses

import pytest

import collect_results
from collect import figures, records, settings
from common.errors import UsageError
from daq_mm import DAQConfig
from record_samples import record, write


def changed(seed, value, recipe="paper", **fields):
    label = ",".join(f"{name}={fields[name]}" for name in sorted(fields))
    return record(recipe, seed, value, settings=fields, label=label)


@pytest.fixture
def folder(tmp_path):
    runs = [record("fp32", seed, 0.6) for seed in (0, 1)]
    runs += [record("paper", 2, 0.9)]  # a seed that no changed run has
    for seed in (0, 1):
        base = 0.5 + 0.1 * seed
        runs += [record("paper", seed, base), record("daq", seed, base + 0.01)]
        runs += [changed(seed, base + 0.02, mcs_lambda=0.2)]
        runs += [changed(seed, base - 0.01 * (1 + seed), mcs_lambda=0.4)]
        runs += [changed(seed, base - 0.05, recipe="daq", keep_gradient_mean=True)]
        runs += [changed(seed, base, mcs_k=1.1)]
    runs += [record("daq", 0, 0.5, settings={"exclude": ["a", "b.*"]}, label="some in float")]
    bits = dict.fromkeys(("activation_bits", "gradient_bits", "weight_bits"), 4)
    runs += [changed(0, 0.2, **bits), changed(0, 0.3, **{**bits, "weight_bits": 5})]
    return write(tmp_path / "records", *runs)


def test_settings_are_compared_with_the_plain_recipe(folder):
    rows, notes = settings.rows(records.read_records([folder]))
    by = {(row["method"], row["setting"]): row for row in rows}
    assert ("fp32", "plain") not in by
    assert by["paper", "plain"]["value, points"] == "66.67 ± 20.82"
    assert by["paper", "plain"][settings.AGAINST] == ""
    assert by["paper", "mcs_lambda=0.2"][settings.AGAINST] == "+2.00 ± 0.00"
    assert by["paper", "mcs_lambda=0.2"]["verdict"] == "not shown"  # of two seeds
    assert by["paper", "mcs_lambda=0.4"][settings.AGAINST] == "-1.50 ± 0.71"
    assert by["daq", "keep_gradient_mean=True"][settings.AGAINST] == "-6.00 ± 0.00"
    one = by["paper", "activation_bits=4,gradient_bits=4,weight_bits=4"]
    assert (one["seeds"], one[settings.AGAINST], one["95% interval"]) == ("1", "-30.00", "")
    assert "plain recipe of the same seeds" in notes[0]


def test_only_what_was_run_both_ways_has_rows(tmp_path):
    runs = [record("fp32"), record("daq"), changed(0, 0.5, mcs_lambda=0.2)]
    assert settings.rows(records.read_records([write(tmp_path, *runs)])) == ([], [])


def test_sweeps_hold_the_recipes_own_value(folder):
    found = settings.sweeps(records.read_records([folder]))
    # k has one value beside the recipe's, and so have the bits of all operands: no curve
    assert [key[-1] for key in found] == [("mcs_lambda",)]
    (points,) = found.values()
    assert set(points.recipe) == {"paper"}
    means = points.groupby("at").value.mean().round(6).to_dict()
    assert means == {0.2: 57.0, 0.3: 55.0, 0.4: 53.5}


def test_defaults_of_the_axes_are_the_recipes():
    fields = {field.name for field in dataclasses.fields(DAQConfig)}
    for recipe in ("paper", "daq"):
        config = DAQConfig.make(recipe)
        for names, (_, default) in settings.SWEPT.items():
            assert set(names) <= fields
            assert {getattr(config, name) for name in names} == {default}


def test_files_are_written_where_there_is_something_to_show(folder, tmp_path):
    arguments = [str(folder), "--out", str(tmp_path / "out"), "--matrices", "--figures"]
    arguments += ["--html", str(tmp_path / "out/report.html")]
    assert collect_results.main(arguments) == 0
    assert "mcs_lambda=0.2" in (tmp_path / "out/accuracy_settings.md").read_text()
    svg = (tmp_path / "out/accuracy_settings.svg").read_text()
    assert "λ of the discriminator" in svg
    assert collect_results.main([*arguments, "--check"]) == 0
    report = (tmp_path / "out/report.html").read_text()
    assert "Changed settings, against the plain recipe" in report
    arguments = [str(folder), "--out", str(tmp_path / "one"), "--figures", "settings"]
    assert collect_results.main(arguments) == 0
    assert [path.stem for path in (tmp_path / "one").glob("*.svg")] == ["accuracy_settings"]
    with pytest.raises(UsageError, match="there is no figure 'speeds' of these runs: curves"):
        collect_results.main([*arguments[:-1], "speeds"])
    plain = [record("fp32"), record("daq")]
    frame = records.read_records([write(tmp_path / "plain", *plain)])
    assert "settings" not in figures.names(frame, collect_results.summary.summarize(frame))
