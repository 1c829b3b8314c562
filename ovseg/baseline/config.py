"""The TensorFlow baseline's `train_eval_infer.config` to our YAML, with a table of what became of every key."""

import ast
import configparser
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovseg.core.errors import InputError
from ovseg.core.registry import choose, fill_defaults
from ovseg.models.layers import ACTIVATIONS
from ovseg.models.swin_unet import SwinUNet
from ovseg.training.losses import LOSSES

REQUIRED = object()


@dataclass
class BaselineFile:
    """The INI file: values are Python literals; a malformed one stops only the key that needs it.

    Attributes:
        path: for messages.
        sections: section -> key -> text.
        rows: (section.key, text, what became of it) of every key asked for so far.
    """

    path: Path
    sections: dict[str, dict[str, str]]
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def get(self, section: str, key: str, becomes: str, default: Any = REQUIRED) -> Any:
        """The value of a key, and a row that says what it becomes.

        Raises:
            InputError: a required section or key is missing, or the value is no literal.
        """
        text = self.sections.get(section, {}).get(key)
        if text is None:
            if default is REQUIRED:
                raise InputError(f"{self.path} has no key {key!r} in section [{section}]. Add it.")
            return default
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise InputError(
                f"{self.path}: [{section}] {key} = {text} is no Python literal. Mend it."
            ) from None
        self.rows.append((f"{section}.{key}", text, becomes))
        return value

    def number(
        self, section: str, key: str, becomes: str, default: Any = REQUIRED, kind: type = int
    ) -> Any:
        """A number, int or float as `kind` says; else as `get`."""
        value = self.get(section, key, becomes, default)
        if isinstance(value, bool) or not isinstance(value, int | kind):
            raise InputError(
                f"{self.path}: [{section}] {key} is {value!r}, expected {kind.__name__}. Mend it."
            )
        return value

    def flag(self, section: str, key: str, becomes: str, default: bool) -> bool:
        """True or False."""
        value = self.get(section, key, becomes, default)
        if not isinstance(value, bool):
            raise InputError(
                f"{self.path}: [{section}] {key} is {value!r}, expected True or False. Mend it."
            )
        return value

    def square(self, section: str, key: str, becomes: str, default: int) -> int:
        """One int of a pair of equal ones, such as (9,9)."""
        value = self.get(section, key, becomes, (default, default))
        if not (
            isinstance(value, tuple | list)
            and len(value) == 2
            and value[0] == value[1]
            and type(value[0]) is int
        ):
            raise InputError(
                f"{self.path}: [{section}] {key} is {value!r}, expected two equal numbers such as (9,9)."
            )
        return value[0]

    def numbers(self, section: str, key: str, becomes: str, default: Any) -> list[int]:
        """A list or tuple of ints, such as [4, 8, 8, 8]."""
        value = self.get(section, key, becomes, default)
        if not isinstance(value, tuple | list) or any(type(item) is not int for item in value):
            raise InputError(
                f"{self.path}: [{section}] {key} is {value!r}, expected a list of ints. Mend it."
            )
        return list(value)


def open_baseline_config(path: Path) -> BaselineFile:
    """Read the file without interpreting a value.

    Raises:
        InputError: no such file, no INI file, or no [model] section.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(Path(path).read_text(encoding="utf-8-sig"), source=str(path))
    except OSError as error:
        raise InputError(
            f"Cannot read {path}: {error.strerror}. Name a train_eval_infer.config."
        ) from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not an INI file: {error}") from None
    if "model" not in parser:
        raise InputError(
            f"{path} has no section [model], so it is no configuration of the baseline."
        )
    return BaselineFile(Path(path), {name: dict(parser[name]) for name in parser.sections()})


def read_baseline_config(path: Path) -> dict[str, Any]:
    """The experiment as a plain dict with our YAML's keys.

    `build_model(config["model"]["arch"], **config["model"]["arch_args"])` is the baseline's network on raw 0..255 RGB.

    Args:
        path: a `train_eval_infer.config` of the baseline.

    Returns:
        `model`, `data`, `trainer`, `early_stopping`, `snapshots`, as in `configs/unet.yaml`.

    Raises:
        InputError: the file, a section or a key that matters is missing or malformed; an unknown network or loss.
    """
    return _convert(open_baseline_config(path))


def explain_baseline_config(path: Path) -> list[tuple[str, str, str]]:
    """A row for each key of the file: `section.key`, its text, and what it became or why it is left out.

    Raises:
        InputError: as `read_baseline_config`.
    """
    file = open_baseline_config(path)
    _convert(file)
    used = {row[0] for row in file.rows}
    left = [
        (f"{section}.{key}", text, _why_ignored(section, key))
        for section, keys in file.sections.items()
        for key, text in keys.items()
        if f"{section}.{key}" not in used
    ]
    return file.rows + left


def _convert(file: BaselineFile) -> dict[str, Any]:
    channels = file.number("model", "image_channels", "checked: 3", 3)
    classes = file.number("model", "num_classes", "checked: 1", 1)
    if (channels, classes) != (3, 1):
        raise InputError(
            f"{file.path}: image_channels {channels}, num_classes {classes}: only 3 and 1 are ported."
        )
    name = file.get("model", "model", "model.arch", "TensorflowUNet")
    arch, arguments = choose("model of the baseline", name, NETWORKS)
    loss = file.get("model", "loss", "model.loss")
    choose("loss", loss, LOSSES)
    return {
        "model": {"arch": arch, "arch_args": arguments(file), "loss": loss, **_optimisation(file)},
        "data": _data(file),
        "trainer": {
            "max_epochs": file.number("train", "epochs", "trainer.max_epochs", 100),
            "gradient_clip_val": file.number(
                "model", "clipvalue", "trainer.gradient_clip_val", 0.2, float
            ),
            "gradient_clip_algorithm": "value",
        },
        "early_stopping": {
            "patience": file.number("train", "patience", "early_stopping.patience", 10)
        },
        "snapshots": {
            "num_infer_images": file.number(
                "train", "num_infer_images", "snapshots.num_infer_images", 6
            )
        },
    }


def _optimisation(file: BaselineFile) -> dict[str, Any]:
    rate = file.number("model", "learning_rate", "model.optimizer_args.lr", kind=float)
    name = file.get("model", "optimizer", "model.optimizer", "Adam")
    optimizers = {
        "Adam": {"optimizer": "keras_adam", "optimizer_args": {"lr": rate, "eps": 1e-7}},
        # Keras' default decay; its epsilon stands before the bias correction, torch's behind it
        "AdamW": {
            "optimizer": "adamw",
            "optimizer_args": {"lr": rate, "eps": 1e-7, "weight_decay": 0.004},
        },
    }
    result = choose("optimizer of the baseline", name, optimizers)
    if file.flag("train", "learning_rate_reducer", "model.scheduler", False):
        patience = file.number("train", "patience", "early_stopping.patience", 10)
        default = patience // 2 or 5
        result["scheduler"] = "keras_plateau"
        result["scheduler_args"] = {
            "factor": file.number(
                "train", "reducer_factor", "model.scheduler_args.factor", 0.1, float
            ),
            "patience": file.number(
                "train", "reducer_patience", "model.scheduler_args.patience", default
            ),
            "min_delta": 1e-4,
            "min_lr": 0.0,
        }
    return result


def _data(file: BaselineFile) -> dict[str, Any]:
    generator = file.flag(
        "model", "generator", "data.augmentation (ours, the nearest in kind)", False
    )
    return {
        "root": _root(
            file.get("train", "image_datapath", "data.root", "dataset/Ovarian-Tumor/train/images")
        ),
        "image_size": max(_image_size(file)),
        "batch_size": file.number("train", "batch_size", "data.batch_size"),
        "shuffle": False,
        "augmentation": "standard" if generator else "none",
        "fit": "stretch",
        "mask_threshold": 127,
    }


def _root(images: str) -> str:
    """`../../../dataset/Ovarian-Tumor/train/images/` -> `dataset/Ovarian-Tumor`."""
    parts = [
        part for part in str(images).replace("\\", "/").split("/") if part not in ("", ".", "..")
    ]
    return "/".join(parts[:-2] if parts[-1:] == ["images"] else parts) or "dataset/Ovarian-Tumor"


def _image_size(file: BaselineFile) -> tuple[int, int]:
    becomes = "data.image_size (a square: the longer side)"
    return tuple(file.number("model", f"image_{side}", becomes) for side in ("height", "width"))


def _activation(file: BaselineFile) -> str:
    name = file.get("model", "activation", "model.arch_args.activation", "relu")
    choose("activation", name, ACTIVATIONS)
    return name


def _levels(file: BaselineFile, dropout_rate: Any = REQUIRED) -> dict[str, Any]:
    """What most UNets of the baseline share; `dropout_rate` is the network's own default, where it has one."""
    rate = file.number("model", "dropout_rate", "model.arch_args.dropout_rate", dropout_rate, float)
    return {**_widths(file), "dropout_rate": rate}


def _widths(file: BaselineFile) -> dict[str, Any]:
    """Filters and levels; the MultiResUNet has no dropout."""
    names = ("base_filters", "num_layers")
    return {name: file.number("model", name, f"model.arch_args.{name}") for name in names}


def _scale(file: BaselineFile) -> dict[str, float]:
    divides = file.flag("model", "input_normalize", "model.arch_args.input_scale", True)
    return {"input_scale": 1 / 255 if divides else 1.0}


def _flexible_unet(file: BaselineFile) -> dict[str, Any]:
    return {
        **_levels(file),
        "base_kernel": file.square("model", "base_kernels", "model.arch_args.base_kernel", 3),
        "dilation": file.square("model", "dilation", "model.arch_args.dilation", 1),
        "activation": _activation(file),
        "normalization": file.flag(
            "model", "normalization", "model.arch_args.normalization", False
        ),
        **_scale(file),
    }


def _swin_unet(file: BaselineFile) -> dict[str, Any]:
    defaults = fill_defaults(SwinUNet, None) | {"patch_size": (4, 4)}
    numbers = ("filter_num_begin", "depth", "stack_num_down", "stack_num_up", "num_mlp")
    result = {
        key: file.number("model", key, f"model.arch_args.{key}", defaults[key]) for key in numbers
    }
    for key in ("patch_size", "num_heads", "window_size"):
        result[key] = file.numbers("model", key, f"model.arch_args.{key}", defaults[key])
    result["shift_window"] = file.flag(
        "model", "shift_window", "model.arch_args.shift_window", True
    )
    return {**result, "image_size": list(_image_size(file))}


def _efficient_unet(file: BaselineFile) -> dict[str, Any]:
    return {"efficientnet": file.get("model", "efficientnet", "model.arch_args.efficientnet", "B0")}


NETWORKS: dict[str, tuple[str, Callable[[BaselineFile], dict[str, Any]]]] = {
    "TensorflowUNet": ("flexible_unet", _flexible_unet),
    "TensorflowSlightlyFlexibleUNet": ("flexible_unet", _flexible_unet),
    "TensorflowAttentionUNet": ("attention_unet", lambda file: _levels(file, 0.1)),
    "TensorflowMultiResUNet": ("multires_unet", _widths),
    "TensorflowUNet3Plus": ("unet3plus", _levels),
    "TensorflowSwinUNet": ("swin_unet", _swin_unet),
    "TensorflowEfficientUNet": ("efficient_unet", _efficient_unet),
    "TensorflowDeepLabV3Plus": ("deeplabv3plus", lambda file: {}),
}


def _why_ignored(section: str, key: str) -> str:
    """Why a key has no place in our configuration."""
    if section in ("model", "train") and key in _REASONS:
        return f"ignored: {_REASONS[key]}"
    return f"ignored: {_SECTION_REASONS.get(section, 'this network or version does not read it')}"


_REASONS = {
    "metrics": "all scores are always computed",
    "show_summary": "Lightning prints it (trainer.enable_model_summary)",
    "model_dir": "the run folder holds the checkpoints",
    "eval_dir": "the run folder holds curves and scores",
    "mask_datapath": "masks are matched by stem below data.root",
    "create_backup": "runs are never overwritten",
    "epoch_change_infer": "snapshots are always on (snapshots.num_infer_images: 0 turns them off)",
    "epoch_change_infer_dir": "the run folder holds the snapshots",
    "save_weights_only": "checkpoints hold all that a resume needs",
    "steps_per_epoch": "an epoch is the training split once (trainer.limit_train_batches shortens it)",
    "validation_steps": "the whole validation split is used (trainer.limit_val_batches shortens it)",
    "dropout_seed_fixing": "dropout is seeded by epoch",
    "input_normalize": "this network of the baseline does not read it",
}
_SECTION_REASONS = {
    "eval": "validation is the valid split below data.root",
    "test": "the test split below data.root, by evaluate",
    "infer": "given to infer on the command line",
    "tiledinfer": "given to infer on the command line",
    "segmentation": "masks are written black and white",
    "mask": "masks are binarised at data.mask_threshold, never blurred",
    "augmentor": "the pipeline is named by data.augmentation",
    "generator": "the pipeline is named by data.augmentation",
}
