"""Convert the TensorFlow baseline's configuration file to our YAML, and explain every key."""

import ast
import configparser
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovseg.baseline.networks import (
    ANY_CHANNELS,
    read_efficientnet_b7_unet,
    read_sharp_unet,
    read_transunet,
    read_u2net,
)
from ovseg.core.errors import InputError
from ovseg.core.limits import MAX_CONFIG_BYTES
from ovseg.core.registry import choose, fill_defaults
from ovseg.core.schema import read_text
from ovseg.models.layers import ACTIVATIONS
from ovseg.models.swin_unet import SwinUNet
from ovseg.training.losses import LOSSES

REQUIRED = object()
DEFAULT_ROOT = "dataset/Ovarian-Tumor"  # the baseline's own


@dataclass
class BaselineFile:
    """The INI file. Values are Python literals; a malformed one matters only where its key is read.

    Attributes:
        path: for messages.
        sections: section -> key -> text.
        rows: (section.key, text, what became of it) of every key read so far.
    """

    path: Path
    sections: dict[str, dict[str, str]]
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def get(self, section: str, key: str, becomes: str, default: Any = REQUIRED) -> Any:
        """The value of a key; adds a row that explains what it becomes.

        Raises:
            InputError: a required section or key is missing, or the value is not a literal.
        """
        text = self.sections.get(section, {}).get(key)
        if text is None:
            if default is REQUIRED:
                raise InputError(f"{self.path} has no key {key!r} in section [{section}]. Add it.")
            return default
        try:
            value = ast.literal_eval(text)
        # What is nested too deeply raises the last two.
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise InputError(
                f"{self.path}: [{section}] {key} = {text[:80]} is no Python literal. Correct it."
            ) from None
        self.rows.append((f"{section}.{key}", text, becomes))
        return value

    def integer(self, section: str, key: str, becomes: str, default: Any = REQUIRED) -> int:
        """An int; else as `get`."""
        value = self.get(section, key, becomes, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._unexpected(section, key, value, "int")
        return value

    def number(self, section: str, key: str, becomes: str, default: Any = REQUIRED) -> int | float:
        """An int or float; else as `get`."""
        value = self.get(section, key, becomes, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._unexpected(section, key, value, "float")
        return value

    def flag(self, section: str, key: str, becomes: str, default: bool) -> bool:
        """True or False."""
        value = self.get(section, key, becomes, default)
        if not isinstance(value, bool):
            raise self._unexpected(section, key, value, "True or False")
        return value

    def square(self, section: str, key: str, becomes: str, default: int) -> int:
        """One int of a pair of equal ones, such as (9,9)."""
        value = self.get(section, key, becomes, (default, default))
        expected = "two equal numbers such as (9,9)"
        if not _is_list_of_ints(value) or len(value) != 2:
            raise self._unexpected(section, key, value, expected)
        first, second = value
        if first != second:
            raise self._unexpected(section, key, value, expected)
        return first

    def integers(self, section: str, key: str, becomes: str, default: Any) -> list[int]:
        """A list or tuple of ints, such as [4, 8, 8, 8]."""
        value = self.get(section, key, becomes, default)
        if not _is_list_of_ints(value):
            raise self._unexpected(section, key, value, "a list of ints")
        return list(value)

    def _unexpected(self, section: str, key: str, value: object, expected: str) -> InputError:
        return InputError(
            f"{self.path}: [{section}] {key} is {value!r}, expected {expected}. Correct it."
        )


def _is_list_of_ints(value: object) -> bool:
    if not isinstance(value, tuple | list):
        return False
    return all(type(item) is int for item in value)  # bool is a subclass of int


def open_baseline_config(path: Path) -> BaselineFile:
    """Read the file without interpreting a value.

    Raises:
        InputError: no such file, not an INI file, or no [model] section.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(read_text(path, MAX_CONFIG_BYTES), source=str(path))
    except configparser.Error as error:
        raise InputError(f"{path} is not an INI file: {error}") from None
    if "model" not in parser:
        raise InputError(
            f"{path} has no section [model], so it is no configuration of the baseline."
        )
    sections = {name: dict(parser[name]) for name in parser.sections()}
    return BaselineFile(Path(path), sections)


def read_baseline_config(path: Path) -> dict[str, Any]:
    """The experiment as a plain dict with our YAML's keys.

    `build_model(config["model"]["arch"], **config["model"]["arch_args"])` is the baseline's network
    on raw 0..255 RGB.

    Args:
        path: a `train_eval_infer.config` of the baseline.

    Returns:
        `model`, `data`, `trainer`, `early_stopping`, `snapshots`, as in `configs/unet.yaml`.

    Raises:
        InputError: the file, a section or a key that matters is missing or malformed; an unknown
            network or loss.
    """
    return _convert(open_baseline_config(path))


def explain_baseline_config(path: Path) -> list[tuple[str, str, str]]:
    """A row for each key of the file.

    Returns:
        `section.key`, its text, and what it became or why it is ignored.

    Raises:
        InputError: as `read_baseline_config`.
    """
    file = open_baseline_config(path)
    _convert(file)
    used = {name for name, _, _ in file.rows}
    ignored = []
    for section, keys in file.sections.items():
        for key, text in keys.items():
            name = f"{section}.{key}"
            if name not in used:
                ignored.append((name, text, _why_ignored(section, key)))
    return file.rows + ignored


def _convert(file: BaselineFile) -> dict[str, Any]:
    name = file.get("model", "model", "model.arch", "TensorflowUNet")
    channels = file.integer("model", "image_channels", "checked: 3", 3)
    classes = file.integer("model", "num_classes", "checked: 1", 1)
    if (channels, classes) != (3, 1) and name not in ANY_CHANNELS:
        raise InputError(
            f"{file.path}: image_channels {channels}, num_classes {classes}: "
            f"only 3 and 1 are ported of {name}."
        )
    return {
        "model": _model(file),
        "data": _data(file),
        "trainer": _trainer(file),
        "early_stopping": {
            "patience": file.integer("train", "patience", "early_stopping.patience", 10),
        },
        "snapshots": {
            "num_infer_images": file.integer(
                "train", "num_infer_images", "snapshots.num_infer_images", 6
            ),
        },
    }


def _model(file: BaselineFile) -> dict[str, Any]:
    name = file.get("model", "model", "model.arch", "TensorflowUNet")
    arch, read_arguments = choose("model of the baseline", name, NETWORKS)
    loss = file.get("model", "loss", "model.loss")
    choose("loss", loss, LOSSES)
    return {
        "arch": arch,
        "arch_args": read_arguments(file),
        "loss": loss,
        **_optimizer(file),
        **_scheduler(file),
    }


def _optimizer(file: BaselineFile) -> dict[str, Any]:
    rate = file.number("model", "learning_rate", "model.optimizer_args.lr")
    name = file.get("model", "optimizer", "model.optimizer", "Adam")
    optimizers = {
        "Adam": {"optimizer": "keras_adam", "optimizer_args": {"lr": rate, "eps": 1e-7}},
        # 0.004 is Keras' default decay. Keras adds epsilon before the bias correction, torch after.
        "AdamW": {
            "optimizer": "adamw",
            "optimizer_args": {"lr": rate, "eps": 1e-7, "weight_decay": 0.004},
        },
    }
    return choose("optimizer of the baseline", name, optimizers)


def _scheduler(file: BaselineFile) -> dict[str, Any]:
    if not file.flag("train", "learning_rate_reducer", "model.scheduler", False):
        return {}
    stopping_patience = file.integer("train", "patience", "early_stopping.patience", 10)
    default_patience = stopping_patience // 2 or 5  # the baseline's rule
    where = "model.scheduler_args"
    return {
        "scheduler": "keras_plateau",
        "scheduler_args": {
            "factor": file.number("train", "reducer_factor", f"{where}.factor", 0.1),
            "patience": file.integer(
                "train", "reducer_patience", f"{where}.patience", default_patience
            ),
            "min_delta": 1e-4,
            "min_lr": 0.0,
        },
    }


def _trainer(file: BaselineFile) -> dict[str, Any]:
    return {
        "max_epochs": file.integer("train", "epochs", "trainer.max_epochs", 100),
        "gradient_clip_val": file.number("model", "clipvalue", "trainer.gradient_clip_val", 0.2),
        "gradient_clip_algorithm": "value",
    }


def _data(file: BaselineFile) -> dict[str, Any]:
    becomes = "data.augmentation (ours, the nearest in kind)"
    augmentation = "none"
    if file.flag("model", "generator", becomes, False):
        augmentation = "standard"
    images = file.get("train", "image_datapath", "data.root", f"{DEFAULT_ROOT}/train/images")
    return {
        "root": _root(str(images)),
        "image_size": max(_image_size(file)),
        "batch_size": file.integer("train", "batch_size", "data.batch_size"),
        "shuffle": False,
        "augmentation": augmentation,
        "fit": "stretch",
        "mask_threshold": 127,
    }


def _root(images: str) -> str:
    """`../../../dataset/Ovarian-Tumor/train/images/` -> `dataset/Ovarian-Tumor`."""
    parts = images.replace("\\", "/").split("/")
    parts = [part for part in parts if part not in ("", ".", "..")]
    if parts[-1:] == ["images"]:
        parts = parts[:-2]  # train/images
    return "/".join(parts) or DEFAULT_ROOT


def _image_size(file: BaselineFile) -> tuple[int, int]:
    """Height and width."""
    becomes = "data.image_size (a square: the longer side)"
    height = file.integer("model", "image_height", becomes)
    width = file.integer("model", "image_width", becomes)
    return height, width


def _activation(file: BaselineFile) -> str:
    name = file.get("model", "activation", "model.arch_args.activation", "relu")
    choose("activation", name, ACTIVATIONS)
    return name


def _widths(file: BaselineFile) -> dict[str, Any]:
    """Filters and levels: all that the MultiResUNet has."""
    return {
        "base_filters": file.integer("model", "base_filters", "model.arch_args.base_filters"),
        "num_layers": file.integer("model", "num_layers", "model.arch_args.num_layers"),
    }


def _levels(file: BaselineFile, dropout_rate: Any = REQUIRED) -> dict[str, Any]:
    """What most UNets of the baseline share; `dropout_rate` is a network's own default."""
    rate = file.number("model", "dropout_rate", "model.arch_args.dropout_rate", dropout_rate)
    return {**_widths(file), "dropout_rate": rate}


def _attention_unet(file: BaselineFile) -> dict[str, Any]:
    return _levels(file, dropout_rate=0.1)


def _flexible_unet(file: BaselineFile) -> dict[str, Any]:
    divides = file.flag("model", "input_normalize", "model.arch_args.input_scale", True)
    return {
        **_levels(file),
        "base_kernel": file.square("model", "base_kernels", "model.arch_args.base_kernel", 3),
        "dilation": file.square("model", "dilation", "model.arch_args.dilation", 1),
        "activation": _activation(file),
        "normalization": file.flag(
            "model", "normalization", "model.arch_args.normalization", False
        ),
        "input_scale": 1 / 255 if divides else 1.0,
    }


def _swin_unet(file: BaselineFile) -> dict[str, Any]:
    defaults = fill_defaults(SwinUNet, None) | {"patch_size": (4, 4)}
    arguments: dict[str, Any] = {}
    for key in ("filter_num_begin", "depth", "stack_num_down", "stack_num_up", "num_mlp"):
        arguments[key] = file.integer("model", key, f"model.arch_args.{key}", defaults[key])
    for key in ("patch_size", "num_heads", "window_size"):
        arguments[key] = file.integers("model", key, f"model.arch_args.{key}", defaults[key])
    arguments["shift_window"] = file.flag(
        "model", "shift_window", "model.arch_args.shift_window", True
    )
    arguments["image_size"] = list(_image_size(file))
    return arguments


def _efficient_unet(file: BaselineFile) -> dict[str, Any]:
    return {"efficientnet": file.get("model", "efficientnet", "model.arch_args.efficientnet", "B0")}


def _deeplab(file: BaselineFile) -> dict[str, Any]:
    return {}


# Class of the baseline -> our architecture and a function that reads its arguments.
NETWORKS: dict[str, tuple[str, Callable[[BaselineFile], dict[str, Any]]]] = {
    "TensorflowUNet": ("flexible_unet", _flexible_unet),
    "TensorflowSlightlyFlexibleUNet": ("flexible_unet", _flexible_unet),
    "TensorflowAttentionUNet": ("attention_unet", _attention_unet),
    "TensorflowMultiResUNet": ("multires_unet", _widths),
    "TensorflowUNet3Plus": ("unet3plus", _levels),
    "TensorflowSwinUNet": ("swin_unet", _swin_unet),
    "TensorflowEfficientUNet": ("efficient_unet", _efficient_unet),
    "TensorflowDeepLabV3Plus": ("deeplabv3plus", _deeplab),
    "TensorflowTransUNet": ("transunet", read_transunet),
    "TensorflowU2Net": ("u2net", read_u2net),
    "TensorflowSharpUNet": ("sharp_unet", read_sharp_unet),
    "TensorflowEfficientNetB7UNet": ("efficientnet_b7_unet", read_efficientnet_b7_unet),
}


def _why_ignored(section: str, key: str) -> str:
    """Why a key has no counterpart in our configuration."""
    if section in ("model", "train") and key in _REASONS:
        return f"ignored: {_REASONS[key]}"
    reason = _SECTION_REASONS.get(section, "this network or version does not read it")
    return f"ignored: {reason}"


_REASONS = {
    "metrics": "all scores are always computed",
    "show_summary": "Lightning prints it (trainer.enable_model_summary)",
    "model_dir": "the run folder holds the checkpoints",
    "eval_dir": "the run folder holds curves and scores",
    "mask_datapath": "masks are matched by stem below data.root",
    "create_backup": "runs are never overwritten",
    "epoch_change_infer": "snapshots.num_infer_images turns them on and off",
    "epoch_change_infer_dir": "the run folder holds the snapshots",
    "save_weights_only": "checkpoints hold all that a resume needs",
    "steps_per_epoch": "trainer.limit_train_batches shortens an epoch",
    "validation_steps": "trainer.limit_val_batches shortens validation",
    "dropout_seed_fixing": "dropout is seeded by epoch",
    "input_normalize": "this network of the baseline does not read it",
}
_SECTION_REASONS = {
    "eval": "validation is the valid split below data.root",
    "test": "`ovseg evaluate` scores the test split below data.root",
    "infer": "`ovseg infer` takes its options on the command line",
    "tiledinfer": "`ovseg infer` takes its options on the command line",
    "segmentation": "masks are written black and white",
    "mask": "masks are binarised at data.mask_threshold, never blurred",
    "augmentor": "data.augmentation names the pipeline",
    "generator": "data.augmentation names the pipeline",
}
