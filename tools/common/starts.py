"""Weights that a config starts from: which local files it names, and whether they can be read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UsageError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def start_files(cfg) -> dict[str, Path]:
    """The local files of weights that a config starts from, by dotted key.

    `load_from`, mmaction's `pretrained` and mmengine's `init_cfg` of type Pretrained count; what
    mmengine downloads (`torchvision://resnet50`, `https://...`) does not.
    """
    named = dict(_named_in(cfg.get("model") or {}, "model"))
    if cfg.get("load_from"):
        named["load_from"] = cfg.load_from
    return {key: Path(name) for key, name in named.items() if not re.match(r"[\w+-]+:", name)}


def check_starts(cfg) -> dict[str, str]:
    """The SHA-256 of each local file that a config starts from, by the file's name.

    Raises:
        UsageError: a file that is missing or cannot be read as weights; the message names the
            config's key and, for a start that a config here makes, the command.
    """
    hashes = {}
    for key, path in start_files(cfg).items():
        makers = sorted(CONFIGS.glob(f"*/{path.stem}_fp32.py"))
        remedy = "give a file of weights"
        if makers:
            maker = makers[0].relative_to(CONFIGS.parent)
            remedy = f"make it with `python tools/prepare_start.py {maker}`"
        if not path.is_file():
            raise UsageError(f"{key} names {path}, which does not exist; {remedy}")
        _read(key, path, remedy)
        hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def _read(key: str, path: Path, remedy: str) -> None:
    import torch

    try:
        torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UsageError(
            f"{key} names {path}, which is damaged ({type(error).__name__}); {remedy}"
        ) from error


def _named_in(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """(dotted key, file) of every start below a part of the model's config."""
    if isinstance(node, (list, tuple)):
        for number, item in enumerate(node):
            yield from _named_in(item, f"{key}.{number}")
    elif isinstance(node, dict):
        if isinstance(node.get("pretrained"), str):
            yield f"{key}.pretrained", node["pretrained"]
        if node.get("type") == "Pretrained" and isinstance(node.get("checkpoint"), str):
            yield f"{key}.checkpoint", node["checkpoint"]
        for name, item in node.items():
            yield from _named_in(item, f"{key}.{name}")
