"""Convert the TensorFlow baseline's configuration file to our YAML, and explain every key."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg.baseline.config_data import feeds_bgr, image_size, normalizes, read_data
from ovseg.baseline.config_infer import read_infer
from ovseg.baseline.ini import REQUIRED, BaselineFile, open_baseline_config
from ovseg.baseline.networks import (
    ANY_CHANNELS,
    read_efficientnet_b7_unet,
    read_sharp_unet,
    read_transunet,
    read_u2net,
)
from ovseg.core.errors import InputError
from ovseg.core.registry import choose, fill_defaults
from ovseg.models import find_architecture
from ovseg.models.layers import ACTIVATIONS
from ovseg.models.swin_unet import SwinUNet
from ovseg.training.losses import LOSSES


@dataclass(frozen=True)
class BaselineConfig:
    """A configuration of the baseline.

    Attributes:
        experiment: a plain dict with our YAML's keys, see `read_baseline_config`.
        rows: `section.key`, its text, and what it became or why it is ignored, of each key.
        bgr: whether the baseline trains on pictures as BGR.
        weights_name: the name of its file of weights.
    """

    experiment: dict[str, Any]
    rows: list[tuple[str, str, str]]
    bgr: bool
    weights_name: str


def read_baseline_config(path: Path) -> dict[str, Any]:
    """The experiment as a plain dict with our YAML's keys.

    `build_model(config["model"]["arch"], **config["model"]["arch_args"])` is the baseline's network
    on raw 0..255 pixels, RGB or BGR as its dataset class reads them.

    Args:
        path: a `train_eval_infer.config` of the baseline.

    Returns:
        `model`, `data`, `trainer`, `early_stopping`, `snapshots`, as in `configs/unet.yaml`.

    Raises:
        InputError: the file, a section or a key that matters is missing or malformed; an unknown
            network, loss or dataset class; or it changes pixels in a way that ovseg has not.
    """
    return convert_baseline_config(path).experiment


def explain_baseline_config(path: Path) -> list[tuple[str, str, str]]:
    """The rows of `convert_baseline_config`.

    Raises:
        InputError: as `read_baseline_config`.
    """
    return convert_baseline_config(path).rows


def convert_baseline_config(path: Path) -> BaselineConfig:
    """The experiment and what became of each key of the file, or of one that it leaves out.

    Raises:
        InputError: as `read_baseline_config`.
    """
    file = open_baseline_config(path)
    experiment = _convert(file)
    name = file.word(
        "train", "best_model_file", "import_baseline --weights FOLDER", "best_model.h5"
    )
    bgr = feeds_bgr(file)
    for section, keys in file.sections.items():
        for key in keys:
            if f"{section}.{key}" not in file.rows:
                file.note(section, key, _why_ignored(file, section, key))
    return BaselineConfig(experiment, file.table(), bgr, name)


def _convert(file: BaselineFile) -> dict[str, Any]:
    name = file.get("model", "model", "model.arch", "TensorflowUNet")
    channels = file.integer("model", "image_channels", "checked: 3", 3)
    classes = file.integer("model", "num_classes", "checked: 1", 1)
    if (channels, classes) != (3, 1) and name not in ANY_CHANNELS:
        raise InputError(
            f"{file.path}: image_channels {channels}, num_classes {classes}: "
            f"only 3 and 1 are ported of {name}."
        )
    patience = file.integer("train", "patience", "early_stopping.patience", 10)
    trainer = _trainer(file)
    experiment = {
        "model": _model(file, patience),
        "data": read_data(file),
        "trainer": trainer,
        "early_stopping": {"patience": patience},
        "snapshots": {"num_infer_images": _snapshots(file)},
    }
    if patience <= 0:
        # As many epochs without a gain as there are can't come together.
        experiment["early_stopping"]["patience"] = max(trainer["max_epochs"], 1)
        file.note(
            "train", "patience", "early_stopping.patience as trainer.max_epochs: it never stops"
        )
    _normalize(file, experiment["model"])
    read_infer(file)
    if "tiledinfer" in file.sections:
        _note_tiles(file)
    return experiment


def _note_tiles(file: BaselineFile) -> None:
    """Say which `--tiles` comes near to the tiles of the baseline.

    Its tiles are squares of `split_size` with `overlapping` pixels more on each side, reduced to
    the network's size. Ours are of the network's size, so they show as much more detail.
    """
    overlap = file.integer("tiledinfer", "overlapping", "infer --tiles", 0)
    split = file.integer("tiledinfer", "split_size", "infer --tiles", image_size(file)[1])
    if overlap < 0 or split < 1:
        raise file.unexpected(
            "tiledinfer", "overlapping", overlap, "0 or more, and split_size 1 or more"
        )
    share = 2 * overlap / (split + 2 * overlap)
    becomes = (
        f"`ovseg infer --tiles {min(share, 0.75):.2g}`: the share that two tiles have in common"
    )
    file.note("tiledinfer", "overlapping", becomes)
    becomes = "`ovseg infer --tiles` takes tiles of image_size at the picture's own resolution"
    file.note("tiledinfer", "split_size", becomes)


def _snapshots(file: BaselineFile) -> int:
    """How many pictures are shown after every epoch."""
    where = "snapshots.num_infer_images"
    if not file.flag("train", "epoch_change_infer", f"{where}: 0", False):
        file.note("train", "num_infer_images", "ignored: train.epoch_change_infer is False")
        return 0
    file.note("train", "epoch_change_infer", f"{where}: train.num_infer_images")
    return max(1, file.integer("train", "num_infer_images", f"{where}, at least 1", 1))


def _normalize(file: BaselineFile, model: dict[str, Any]) -> None:
    """Divide by 255 once more where the dataset class of the baseline does."""
    if not normalizes(file):
        return
    arch = find_architecture(model["arch"])
    scale = fill_defaults(arch, model["arch_args"]).get("input_scale")
    if not isinstance(scale, float):
        raise InputError(
            f"{file.path}: [dataset] image_normalize = True divides pictures by 255, which "
            f"{model['arch']} can't take. Set it to False."
        )
    model["arch_args"]["input_scale"] = scale / 255


def _model(file: BaselineFile, patience: int) -> dict[str, Any]:
    name = file.get("model", "model", "model.arch", "TensorflowUNet")
    arch, read_arguments = choose("model of the baseline", name, NETWORKS)
    loss = file.get("model", "loss", "model.loss")
    choose("loss", loss, LOSSES)
    return {
        "arch": arch,
        "arch_args": read_arguments(file),
        "loss": loss,
        **_optimizer(file),
        **_scheduler(file, patience),
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


def _scheduler(file: BaselineFile, stopping_patience: int) -> dict[str, Any]:
    if not file.flag("train", "learning_rate_reducer", "model.scheduler", False):
        for key in ("reducer_factor", "reducer_patience"):
            file.note("train", key, "ignored: train.learning_rate_reducer is False")
        return {}
    where = "model.scheduler_args"
    becomes = f"{where}.patience, at least 1"
    patience = file.integer("train", "reducer_patience", becomes, stopping_patience // 2)
    return {
        "scheduler": "keras_plateau",
        "scheduler_args": {
            "factor": file.number("train", "reducer_factor", f"{where}.factor", 0.1),
            "patience": max(patience, 1),  # to Keras all below are the same
            "min_delta": 1e-4,
            "min_lr": 0.0,
        },
    }


def _trainer(file: BaselineFile) -> dict[str, Any]:
    return {
        "max_epochs": file.integer("train", "epochs", "trainer.max_epochs"),
        "gradient_clip_val": file.number("model", "clipvalue", "trainer.gradient_clip_val", 0.2),
        "gradient_clip_algorithm": "value",
    }


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
    final = file.get("model", "final_activation", "checked: sigmoid", "sigmoid")
    if final not in ("sigmoid", None, "", False):  # what is empty is the sigmoid too
        raise InputError(
            f"{file.path}: [model] final_activation is {final!r}, but only the sigmoid is ported: "
            "losses and predictions take it. Remove the key."
        )
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
    arguments["image_size"] = list(image_size(file))
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


def _why_ignored(file: BaselineFile, section: str, key: str) -> str:
    """Why a key has no counterpart in our configuration."""
    if section in file.unused:
        return f"ignored: {file.unused[section]}"
    reason = _REASONS.get(f"{section}.{key}")
    if reason is None and section == "model":
        reason = "this network of the baseline does not read it"
    return f"ignored: {reason or 'the baseline is not known to read it'}"


_TILES = "`ovseg infer --tiles` writes masks of averaged probabilities"
_ELSEWHERE = "`ovseg infer` takes its folders on the command line"
_COLOURS = "for several classes, of which only one is ported"
_REASONS = {
    "model.metrics": "all scores are always computed",
    "model.show_summary": "Lightning prints it (trainer.enable_model_summary)",
    "model.dropout_seed_fixing": "dropout is seeded by epoch",
    "model.evaluation": "`ovseg evaluate --split` names what is scored",
    "dataset.debug": "it only writes the pictures that were read",
    "dataset.image_format": "the baseline reads it and does not use it",
    "dataset.input_normalize": "the baseline reads it and does not use it",
    "dataset.rgb_mask": "masks of any colours are read as grey values",
    "dataset.mask_format": _COLOURS,
    "train.metrics": "all scores are always drawn",
    "train.model_dir": "the run folder holds the checkpoints",
    "train.eval_dir": "the run folder holds curves and scores",
    "train.mask_datapath": "masks are matched by stem below data.root",
    "train.create_backup": "runs are never overwritten",
    "train.show_history": "the run folder holds the curves",
    "train.epoch_change_infer_dir": "the run folder holds the snapshots",
    "train.epoch_change_tiledinfer": "snapshots show whole pictures, not tiles",
    "train.epoch_change_tiledinfer_dir": "snapshots show whole pictures, not tiles",
    "train.save_weights_only": "checkpoints hold all that a resume needs; both kinds are imported",
    "train.seedreset_callback": "dropout is seeded by epoch, with another seed in each",
    "eval.image_datapath": "validation is the valid split below data.root",
    "eval.mask_datapath": "validation is the valid split below data.root",
    "eval.batch_size": "`ovseg evaluate --batch_size` takes it; 4 is the default of both",
    "test.image_datapath": "`ovseg evaluate` scores the test split below data.root",
    "test.mask_datapath": "`ovseg evaluate` scores the test split below data.root",
    "infer.images_dir": f"{_ELSEWHERE}; data.mini_test names that of the snapshots",
    "infer.output_dir": _ELSEWHERE,
    "infer.algorithm": "the baseline's inferencer reads it and does not use it",
    "infer.colorized_dir": _COLOURS,
    "infer.colorized_output_format": _COLOURS,
    "tiledinfer.images_dir": _ELSEWHERE,
    "tiledinfer.output_dir": _ELSEWHERE,
    "tiledinfer.merged_dir": _ELSEWHERE,
    "tiledinfer.bitwise_blending": f"{_TILES}; the baseline keeps the bits that a tile has in "
    "common with the whole picture",
    "tiledinfer.binarize": _TILES,
    "tiledinfer.threshold": _TILES,
    "tiledinfer.algorithm": _TILES,
    "tiledinfer.background": _TILES,
    "segmentation.blursize": "the baseline reads it and does not use it",
    "mask.mask_colors": _COLOURS,
    "mask.mask_channels": _COLOURS,
    "mask.grayscaling": _COLOURS,
    "mask.color_order": _COLOURS,
    "mask.sharpening": _COLOURS,
    "generator.debug": "`ovseg draw_augmentations` draws what augmentation does",
    "generator.verbose": "it only prints",
    "generator.generated_images_dir": "`ovseg draw_augmentations` draws what augmentation does",
    "generator.generated_masks_dir": "`ovseg draw_augmentations` draws what augmentation does",
}
