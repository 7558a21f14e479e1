"""DAQ_MM_WGMMA: what it switches, and values that it does not have."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from daq_mm import wgmma_switch


@pytest.mark.parametrize("value, said", (("0", [False]), ("1", []), (None, [])))
def test_switches_wgmma_off(monkeypatch, value, said):
    called = []
    monkeypatch.setattr(wgmma_switch.ops, "kernels_built", lambda device: (device == "cuda", ""))
    monkeypatch.setattr(wgmma_switch.torch.ops, "daq_mm", SimpleNamespace(use_wgmma=called.append))
    monkeypatch.delenv(wgmma_switch.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(wgmma_switch.VARIABLE, value)
    wgmma_switch.set_from_environment()
    assert called == said


def test_has_no_effect_without_cuda_kernels(monkeypatch):
    monkeypatch.setattr(wgmma_switch.ops, "kernels_built", lambda device: (False, "not built"))
    monkeypatch.setenv(wgmma_switch.VARIABLE, "0")
    wgmma_switch.set_from_environment()


def test_a_value_that_is_not_allowed_is_told_at_import():
    child = subprocess.run(
        [sys.executable, "-c", "import daq_mm"],
        env={"DAQ_MM_WGMMA": "off"},
        capture_output=True,
        text=True,
    )
    assert child.returncode != 0
    assert "DAQ_MM_WGMMA='off' is not allowed: 0 or 1" in child.stderr
