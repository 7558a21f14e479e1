"""The few mends that the OpenMMLab stack needs; no kernel or layer depends on them.

`install()` puts three finders on `sys.meta_path` and imports nothing, so it costs nothing until
`mmdet` or `mmaction` is imported, and nothing at all where they are not installed:

* mmaction and some releases of mmdet assert an upper bound on mmcv's version (`mmcv < 2.2.0`) in
  their `__init__`, although newer mmcv works. While that `__init__` runs, and only then,
  `mmcv.__version__` reads as a version within the bound.
* mmaction2 1.2.0 as published on the package registry lacks its own package
  `mmaction.models.localizers.drn`, so `import mmaction.models` fails. A stub is found in its place,
  only when no real one is; its class `DRN` raises NotImplementedError when built.
* mmdet reads since 3.2.0 `loss_cls` of every dense head when it predicts, which `SSDHead`
  does not have: an SSD trains and then fails at its first validation
  (https://github.com/open-mmlab/mmdetection/issues/11063). A head without one gets None, which
  stands for no loss with special channels.
"""

import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

BOUNDED = ("mmaction", "mmdet")
"""Packages whose `__init__` may assert an upper bound on mmcv's version."""
ACCEPTED_MMCV = "2.1.0"
"""The version that `mmcv` claims to have meanwhile; within the bounds of every such release."""
DRN = "mmaction.models.localizers.drn"
SSD = "mmdet.models.dense_heads.ssd_head"


def install() -> None:
    """Puts the finders in place; calling it again changes nothing. Imports no other package."""
    if not any(isinstance(finder, _BoundFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BoundFinder())
    if not any(isinstance(finder, _StubFinder) for finder in sys.meta_path):
        sys.meta_path.append(_StubFinder())  # last, so that a real package wins
    if SSD in sys.modules:
        _give_loss_cls(sys.modules[SSD])
    elif not any(isinstance(finder, _SSDFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SSDFinder())


def mend_mmaction() -> bool:
    """Installs the mends and imports mmaction with them; False where it is not installed."""
    install()
    if "mmaction" not in sys.modules and importlib.util.find_spec("mmaction") is None:
        return False
    importlib.import_module("mmaction")
    return True


@contextlib.contextmanager
def accepted_mmcv_version() -> Iterator[None]:
    """Within the block `mmcv.__version__` is at most `ACCEPTED_MMCV`; restored on leaving it."""
    mmcv = importlib.import_module("mmcv")
    true_version = mmcv.__version__
    if _numbers(true_version) > _numbers(ACCEPTED_MMCV):
        mmcv.__version__ = ACCEPTED_MMCV
    try:
        yield
    finally:
        mmcv.__version__ = true_version


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _found_by_others(this, fullname, path, target) -> importlib.machinery.ModuleSpec | None:
    """What the finders beside `this` one find."""
    for finder in sys.meta_path:
        if finder is this or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec(fullname, path, target)
        if spec is not None:
            return spec
    return None


class _BoundFinder(importlib.abc.MetaPathFinder):
    """Finds the packages in `BOUNDED` as the other finders do, with a loader that mends."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in BOUNDED:
            return None
        spec = _found_by_others(self, fullname, path, target)
        if spec is not None and spec.loader is not None:
            if importlib.util.find_spec("mmcv") is not None:
                _wrap_exec_module(spec.loader)
        return spec


class _SSDFinder(importlib.abc.MetaPathFinder):
    """Finds the module `SSD` as the other finders do, with a loader that mends its head."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != SSD:
            return None
        spec = _found_by_others(self, fullname, path, target)
        if spec is not None and spec.loader is not None:
            exec_module = spec.loader.exec_module

            def exec_module_mended(module: ModuleType) -> None:
                exec_module(module)
                _give_loss_cls(module)

            spec.loader.exec_module = exec_module_mended
        return spec


def _give_loss_cls(module: ModuleType) -> None:
    """Lets `SSDHead.__init__` of `module` end with `loss_cls` None if it made none.

    In the instance, not in the class: a subclass's own module of that name must be found.
    """
    head = module.SSDHead
    make = head.__init__
    if getattr(make, "_daq_mm_mended", False):
        return

    @functools.wraps(make)
    def __init__(self, *args, **kwargs):
        make(self, *args, **kwargs)
        if not hasattr(self, "loss_cls"):
            self.loss_cls = None

    __init__._daq_mm_mended = True
    head.__init__ = __init__


def _wrap_exec_module(loader: importlib.abc.Loader) -> None:
    """Makes this one loader (each module has its own) run its module under the mend."""
    exec_module = loader.exec_module

    def exec_module_mended(module: ModuleType) -> None:
        with accepted_mmcv_version():
            exec_module(module)

    loader.exec_module = exec_module_mended


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Supplies the stub of `DRN` (a package) and its submodule, for want of real ones."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == DRN:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        if fullname == f"{DRN}.drn" and _is_stub(sys.modules.get(DRN)):
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = "Stub by daq_mm.compat: this release of mmaction lacks the DRN localizer."
        if module.__name__ == f"{DRN}.drn":
            module.DRN = _absent_class(module.__name__)


def _is_stub(module: ModuleType | None) -> bool:
    return isinstance(getattr(getattr(module, "__spec__", None), "loader", None), _StubFinder)


def _absent_class(module_name: str) -> type:
    def __init__(self, *args, **kwargs):
        raise NotImplementedError(
            "the localizer DRN is missing from this release of mmaction (the registry's "
            "mmaction2 1.2.0 was published without it); install mmaction2 from its sources to "
            "use DRN"
        )

    return type(
        "DRN",
        (),
        {
            "__init__": __init__,
            "__module__": module_name,
            "__doc__": "Placeholder that raises when built.",
        },
    )
