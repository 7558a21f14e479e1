"""compare_records.py: what it says of a repeated run."""

import pytest

import compare_records
from common.errors import UsageError
from record_samples import record, write


def test_the_same_and_another_result(tmp_path, capsys):
    other = record("daq", 1, 0.52)
    other["curve"][0]["loss"] = 2.5
    other["commit"] = {"sha": "1" * 40, "dirty": False}
    one = write(tmp_path / "a", record("fp32"), record("daq", 1, 0.5), record("paper"))
    two = write(tmp_path / "b", record("fp32"), other, record("paper", finished=False))
    assert compare_records.main([str(one), str(two)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "net-daq-seed1: +2.00 points, curves part at epoch 1; different: commit",
        "net-fp32-seed0: the same curve to the last digit",
    ]
    assert compare_records.main([str(one), str(two), "--tolerance", "2.5"]) == 0


def test_a_longer_curve_parts_at_its_end(tmp_path):
    short, long = record()["curve"], [*record()["curve"], {"epoch": 3, "loss": 1.0}]
    assert compare_records.first_difference(short, long) == 3
    assert compare_records.first_difference(long, long) is None


def test_mistakes_are_told(tmp_path):
    one = write(tmp_path / "a", record("fp32"))
    with pytest.raises(UsageError, match="none is not a folder of records"):
        compare_records.main([str(one), str(tmp_path / "none")])
    two = write(tmp_path / "b", record("daq"))
    with pytest.raises(UsageError, match="have no finished record of the same name"):
        compare_records.main([str(one), str(two)])
    (two / "net-fp32-seed0.json").write_text("{")
    with pytest.raises(UsageError, match="is not valid JSON"):
        compare_records.main([str(one), str(two)])


def test_tests_are_compared_where_both_have_one(tmp_path, capsys):
    tests = [
        {"value": value, "samples": 9, "metrics": {"coco/bbox_mAP": value}} for value in (0.5, 0.75)
    ]
    one = write(tmp_path / "a", record("fp32", test=tests[0]), record("daq", test=tests[0]))
    two = write(tmp_path / "b", record("fp32", test=tests[1]), record("daq"))
    assert compare_records.main([str(one), str(two)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "net-daq-seed0: the same curve to the last digit",
        "net-fp32-seed0: the same curve to the last digit, +25.00 points on the test set",
    ]
