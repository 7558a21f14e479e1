"""Read a config for the tools: overrides, the INT8 and AMP switches, and checks before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mmengine.config import Config

import daq_mm
from daq_mm.config import RECIPES, DAQConfig

from .errors import UsageError


def load_config(path: str, options: dict | None = None) -> Config:
    """The config of a file, or of 'mmdet::...' / 'mmaction::...', with dotted overrides.

    Raises:
        UsageError: no such file, or one that is not a config.
    """
    daq_mm.compat.install()
    if "::" not in path and not Path(path).is_file():
        raise UsageError(
            f"config {path!r} does not exist; give a .py file, or a stock config such as "
            "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
        )
    if "::" in path:
        from mmengine.hub import get_config

        cfg = get_config(path)
    else:
        try:
            cfg = Config.fromfile(path)
        except SyntaxError as error:
            raise UsageError(f"config {path!r} is not valid Python: {error}") from error
    if options:
        cfg.merge_from_dict(options)
    if "model" not in cfg:
        raise UsageError(f"config {path!r} has no 'model'; is it a file of _base_?")
    return cfg


def hook_config(cfg: Config) -> DAQConfig | None:
    """The settings of the config's DAQHook; None if it has none.

    Raises:
        UsageError: settings that DAQConfig refuses.
    """
    for hook in cfg.get("custom_hooks") or []:
        if _is_daq_hook(hook):
            try:
                return DAQConfig.make(hook.get("config"))
            except (TypeError, ValueError) as error:
                raise UsageError(f"DAQHook's config: {error}") from error
    return None


def recipe_of(cfg: Config) -> str:
    """The INT8 recipe of a config; 'bf16' or 'fp32' if it has no DAQHook.

    Raises:
        UsageError: settings of DAQHook that DAQConfig refuses.
    """
    config = hook_config(cfg)
    if config is not None:
        return config.recipe
    wrapper = str((cfg.get("optim_wrapper") or {}).get("type", ""))
    return "bf16" if "BF16" in wrapper or "Amp" in wrapper else "fp32"


def settings_of(cfg: Config) -> dict:
    """The settings of the config's DAQHook that differ from its recipe's, tuples as lists."""
    config = hook_config(cfg)
    if config is None:
        return {}
    recipe = DAQConfig.make(config.recipe)
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != getattr(recipe, field.name):
            changed[field.name] = list(value) if isinstance(value, tuple) else value
    return changed


def set_recipe(cfg: Config, recipe: str) -> None:
    """Make a config train by 'fp32', 'bf16' or an INT8 recipe, whatever it said before.

    Raises:
        UsageError: a recipe that does not exist.
    """
    if recipe not in ("fp32", "bf16", *RECIPES):
        raise UsageError(
            f"recipe {recipe!r} is unknown; allowed: fp32, bf16, {', '.join(sorted(RECIPES))}"
        )
    hooks = cfg.get("custom_hooks") or []
    cfg.custom_hooks = [hook for hook in hooks if not _is_daq_hook(hook)]
    if recipe in RECIPES:
        cfg.custom_hooks.append(dict(type="DAQHook", config=dict(recipe=recipe)))
    elif recipe == "bf16":
        use_bf16(cfg)


def set_settings(cfg: Config, settings: dict) -> None:
    """Change settings of the config's DAQHook.

    Raises:
        UsageError: a run without DAQHook, or settings that DAQConfig refuses.
    """
    hooks = [hook for hook in cfg.get("custom_hooks") or [] if _is_daq_hook(hook)]
    if not hooks:
        raise UsageError(
            f"settings {', '.join(settings)} are DAQHook's, and a run in {recipe_of(cfg)} has none"
        )
    config = hooks[0].get("config") or {}
    hooks[0]["config"] = {**({"recipe": config} if isinstance(config, str) else config), **settings}
    hook_config(cfg)


def allow_reference(cfg: Config) -> None:
    """Let DAQHook train where only the slow reference can; no effect on a run without it."""
    for hook in cfg.get("custom_hooks") or []:
        if _is_daq_hook(hook):
            hook["allow_reference"] = True


def _is_daq_hook(hook: dict) -> bool:
    return hook.get("type") in ("DAQHook", daq_mm.DAQHook)


def use_bf16(cfg: Config) -> None:
    """Train under bfloat16 autocast."""
    cfg.optim_wrapper.type = "BF16OptimWrapper"
    cfg.optim_wrapper.pop("loss_scale", None)
    cfg.optim_wrapper.pop("dtype", None)


def dataset_paths(dataset: dict) -> list[Path]:
    """Annotation files and folders that a dataset of a config reads."""
    while "dataset" in dataset:  # wrappers such as RepeatDataset
        dataset = dataset["dataset"]
    if "datasets" in dataset:
        return [path for inner in dataset["datasets"] for path in dataset_paths(inner)]
    root = Path(dataset.get("data_root") or ".")
    paths = [root / dataset["ann_file"]] if dataset.get("ann_file") else []
    prefixes = dataset.get("data_prefix") or {}
    if isinstance(prefixes, str):  # as mmpretrain writes it
        prefixes = {"img_path": prefixes}
    return paths + [root / prefix for prefix in prefixes.values() if prefix]


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Raise UsageError for the first annotation file or folder that is missing."""
    for split in splits:
        loader = cfg.get(f"{split}_dataloader")
        for path in dataset_paths(loader["dataset"]) if loader else []:
            if not path.exists():
                raise UsageError(
                    f"{split}_dataloader needs {path}, which does not exist; make the generated "
                    "sets with `python tools/prepare_data.py all`, or set data_root to your data"
                )


def check_checkpoint(path: str | Path) -> None:
    """Raise UsageError unless the file is a checkpoint that can be read to its end."""
    import torch

    if not Path(path).is_file():
        raise UsageError(f"checkpoint {path} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UsageError(
            f"checkpoint {path} is damaged ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:120]}); use an earlier one with --resume PATH"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UsageError(f"checkpoint {path} has no 'state_dict'; it was not saved by a training")
