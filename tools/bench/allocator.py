"""One allocator setting for every mode that is compared, and words that say which.

glibc maps each block above a threshold (at most 32 MiB) afresh and gives it back when freed, so
every large tensor of every iteration pays for its page faults again. That slows down whoever
makes the largest tensors (float32 most), and is no property of the arithmetic. `heap` makes glibc
keep everything on its heap; `default` leaves it as a user without settings has it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

CHOICES = ("heap", "default")

#: Parameters of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

#: Allocators that replace glibc's when they are preloaded, by a part of their file's name.
_REPLACEMENTS = ("jemalloc", "tcmalloc", "mimalloc")


def configure(choice: str) -> dict[str, str]:
    """Set the allocator of this process; call it before the first large tensor.

    Args:
        choice: 'heap' or 'default'. A preloaded jemalloc, tcmalloc or mimalloc stays as it is.

    Returns:
        'library' and 'setting', for the record.

    Raises:
        ValueError: another choice. RuntimeError: 'heap' where the C library is not glibc.
    """
    if choice not in CHOICES:
        raise ValueError(f"allocator={choice!r} is unknown; allowed: {', '.join(CHOICES)}")
    replacement = _preloaded()
    if replacement:
        return {"library": replacement, "setting": "preloaded, untouched"}
    if choice == "default":
        return {"library": "libc", "setting": "default"}
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        raise RuntimeError(
            "allocator='heap' needs glibc; use --allocator default, or preload jemalloc"
        )
    # No block is mapped on its own, and the heap never shrinks: -1 switches trimming off.
    if not (libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1)):
        raise RuntimeError("mallopt refused M_MMAP_MAX=0 or M_TRIM_THRESHOLD=-1")
    return {"library": "glibc", "setting": "M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1"}


def _preloaded() -> str | None:
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    return next((name for name in _REPLACEMENTS if f"lib{name}" in maps), None)
