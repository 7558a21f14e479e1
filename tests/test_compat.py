"""compat: the mends apply only while needed, leave no trace, and give way to real packages.

Each case runs in a subprocess, because imports cannot be undone. Most use small stand-ins for
mmcv and mmaction, so that they take a moment and don't depend on what is installed.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

COMPAT = Path(__file__).resolve().parent.parent / "daq_mm" / "compat.py"
BOUND = """
import mmcv
assert tuple(int(p) for p in mmcv.__version__.split('.')) < (2, 2, 0), 'mmcv is too new'
seen = mmcv.__version__
"""


def write_package(root: Path, name: str, content: str) -> None:
    """A package with an `__init__.py` of `content`, and empty parents where they are missing."""
    folder = root.joinpath(*name.split("."))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text(textwrap.dedent(content))


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """Stand-ins: mmcv 2.3.6, and an mmaction with the version bound and without its DRN."""
    write_package(tmp_path, "mmcv", "__version__ = '2.3.6'")
    write_package(tmp_path, "mmaction", BOUND)
    write_package(tmp_path, "mmaction.models", "from .localizers import *")
    write_package(tmp_path, "mmaction.models.localizers", "from .drn.drn import DRN")
    return tmp_path


def run(code: str, path: Path) -> subprocess.CompletedProcess:
    """Runs `code` after `compat` was loaded by itself, with `path` to import from."""
    load = f"""
    import importlib.util, sys
    spec = importlib.util.spec_from_file_location('compat', {str(COMPAT)!r})
    compat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compat)
    """
    script = textwrap.dedent(load) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-S", "-c", script],
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def check(code: str, path: Path) -> None:
    result = run(code, path)
    assert result.returncode == 0, result.stderr


def test_the_stack_fails_without_the_mends(stack):
    """The premise of the other tests."""
    result = run("import mmaction", stack)
    assert result.returncode != 0
    assert "mmcv is too new" in result.stderr


def test_install_imports_nothing(stack):
    check(
        """
        before = set(sys.modules)
        compat.install()
        assert set(sys.modules) == before, set(sys.modules) - before
        """,
        stack,
    )


def test_install_twice_adds_three_finders(stack):
    check(
        """
        before = len(sys.meta_path)
        compat.install()
        compat.install()
        assert len(sys.meta_path) == before + 3
        """,
        stack,
    )


def test_version_is_restored(stack):
    check(
        """
        compat.install()
        import mmaction, mmcv
        assert mmaction.seen == '2.1.0'
        assert mmcv.__version__ == '2.3.6'
        """,
        stack,
    )


def test_version_is_restored_after_a_failure(stack):
    write_package(stack, "mmdet", "import mmcv\nraise RuntimeError('broken')")
    check(
        """
        compat.install()
        try:
            import mmdet
        except RuntimeError:
            pass
        import mmcv
        assert mmcv.__version__ == '2.3.6'
        """,
        stack,
    )


def test_older_version_is_not_raised(stack):
    write_package(stack, "mmcv", "__version__ = '2.0.1'")
    check("compat.install(); import mmaction; assert mmaction.seen == '2.0.1'", stack)


def test_drn_stub_raises_when_built(stack):
    check(
        """
        compat.install()
        from mmaction.models import localizers
        try:
            localizers.DRN(1, two=2)
        except NotImplementedError as error:
            assert 'mmaction' in str(error)
        else:
            raise SystemExit('built')
        """,
        stack,
    )


def test_real_drn_wins(stack):
    write_package(stack, "mmaction.models.localizers.drn", "")
    (stack / "mmaction/models/localizers/drn/drn.py").write_text("class DRN: real = True")
    check(
        """
        compat.install()
        from mmaction.models.localizers import DRN
        assert DRN.real
        """,
        stack,
    )


def test_without_mmaction(tmp_path):
    check(
        """
        assert compat.mend_mmaction() is False
        try:
            import mmaction
        except ModuleNotFoundError as error:
            assert error.name == 'mmaction'
        else:
            raise SystemExit('imported')
        """,
        tmp_path,
    )


def test_mend_mmaction_imports_it(stack):
    check("assert compat.mend_mmaction(); assert 'mmaction' in sys.modules", stack)


@pytest.mark.skipif(importlib.util.find_spec("mmaction") is None, reason="mmaction not installed")
def test_the_real_mmaction():
    """`import daq_mm` is all that a config's custom_imports does."""
    code = (
        "import daq_mm, mmcv; before = mmcv.__version__; "
        "from mmaction.models import ResNet3dSlowOnly; assert mmcv.__version__ == before"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=COMPAT.parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


SSD = """
class SSDHead:
    def __init__(self, kept=False):
        if kept:
            self.loss_cls = "its own"
"""


@pytest.mark.parametrize("before", [False, True], ids=["imported after", "imported before"])
def test_ssd_head_gets_a_loss_cls(stack, before):
    for name in ("mmdet", "mmdet.models", "mmdet.models.dense_heads"):
        write_package(stack, name, "")
    (stack / "mmdet/models/dense_heads/ssd_head.py").write_text(SSD)
    first = "import mmdet.models.dense_heads.ssd_head" if before else "compat.install()"
    check(
        f"""
        {first}
        compat.install()
        from mmdet.models.dense_heads.ssd_head import SSDHead
        assert SSDHead().loss_cls is None
        assert SSDHead(kept=True).loss_cls == "its own"
        assert "loss_cls" not in vars(SSDHead)
        made = SSDHead.__init__
        compat.install()
        assert SSDHead.__init__ is made
        """,
        stack,
    )
