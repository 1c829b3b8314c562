"""What a resumed training may not change, and whether a checkpoint can be resumed at all.

The state itself is kept where it belongs, in each part's own `state_dict`: the order of the images
and their augmentation in `ovseg.data.datamodule`, the curves, the early stopping and the best
checkpoint so far in `ovseg.training.callbacks`, the averaged weights in `ovseg.training.ema`, and
the network, the optimiser and the schedule by Lightning.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_info

from ovseg.core.checkpoints import digests_of, epochs_done
from ovseg.core.errors import InputError, first_five
from ovseg.core.registry import fill_defaults
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.tree import FOLD_SPLITS
from ovseg.models import find_architecture
from ovseg.training.callbacks import stopped_early
from ovseg.training.checks import ends_within
from ovseg.training.ema import decay_of
from ovseg.training.task import SegmentationTask

# Arguments of the task that a resume takes from the checkpoint.
RESUMED = (
    "arch",
    "arch_args",
    "optimizer",
    "optimizer_args",
    "scheduler",
    "scheduler_args",
    "loss",
    "loss_args",
    "encoder_lr_factor",
    "freeze_encoder_epochs",
    "monitor",
)
# Arguments of the data module from which the images of training and validation follow.
RESUMED_DATA = (
    "image_size",
    "fit",
    "mask_threshold",
    "mask_blur",
    "classes",
    "exclude",
    "fold",
    "valid_share",
    "train_on_valid",
)
# Those that a resume may change, so that it is not what the training would have been.
CHANGEABLE = (
    "batch_size",
    "augmentation",
    "augmentation_args",
    "steps_per_epoch",
    "shuffle",
    "drop_last",
    "seed",
)


def check_checkpoint(config: Any, checkpoint: dict[str, Any]) -> None:
    """Check that a resume continues with the checkpoint's network, optimiser, schedule and data.

    A message names what it continues with instead of the checkpoint's batches and augmentation.
    That the images are the same is left to `check_data`, after they were verified.

    Args:
        config: the whole configuration.
        checkpoint: that of `config.ckpt_path`.

    Raises:
        InputError: they differ, or the checkpoint is not of the end of an epoch, or the training is
            complete.
    """
    path = config.ckpt_path
    remedy = (
        "Resume with the run's own config.yaml, or start a new training from its weights: "
        f"--model.weights {path}."
    )
    trained = fill_defaults(SegmentationTask, checkpoint["hyper_parameters"])
    for name in RESUMED:
        given = config.model[name]
        if not _is_same(config.model.arch, name, given, trained[name]):
            raise InputError(
                f"{path} was trained with model.{name} {trained[name]}, but the configuration has "
                f"{given}, which a resume would ignore. {remedy}"
            )
    _check_data_settings(config, checkpoint, remedy)
    decay = decay_of(checkpoint)
    if decay != config.ema.decay:
        raise InputError(
            f"{path} was trained with ema.decay {decay}, but the configuration has "
            f"{config.ema.decay}. {remedy}"
        )
    _check_progress(config, checkpoint)


def _check_data_settings(config: Any, checkpoint: dict[str, Any], remedy: str) -> None:
    settings = checkpoint["datamodule_hyper_parameters"]
    trained = fill_defaults(OvarianTumorDataModule, settings)
    different = []
    for name in RESUMED_DATA:
        given = config.data[name]
        before = trained[name]
        if name == "exclude":
            given = _stems(given)
            before = _stems(before)
        if given != before:
            different.append(f"data.{name} {before}, not {given}")
    if different:
        raise InputError(
            f"{config.ckpt_path} was trained with {first_five(different)} as the configuration "
            "has. Its best score would be compared with scores of other images, or images that it "
            f"was trained on would be validated with. {remedy}"
        )
    changed = []
    for name in CHANGEABLE:
        if trained[name] != config.data[name]:
            changed.append(f"data.{name} {config.data[name]} (it was {trained[name]})")
    if changed:
        rank_zero_info(
            f"The resume goes on with {first_five(changed)}, so it is not the training that was "
            "interrupted."
        )


def _stems(exclude: Any) -> list[str]:
    return sorted(str(stem) for stem in exclude or ())


def check_data(path: Path, checkpoint: dict[str, Any], data: OvarianTumorDataModule) -> None:
    """Check that a dataset is the one that a checkpoint was trained on, wherever it lies.

    Args:
        path: of the checkpoint.
        checkpoint: see `ovseg.core.checkpoints.read_checkpoint`.
        data: verified.

    Raises:
        InputError: other images or masks.
    """
    if epochs_done(checkpoint) == 0:
        return  # such as an import of the baseline, which no image was trained with
    trained = digests_of(checkpoint)
    if trained is None:  # by an earlier ovseg
        root = checkpoint["datamodule_hyper_parameters"]["root"]
        different = [] if Path(root).resolve() == data.root.resolve() else list(FOLD_SPLITS)
    else:
        different = [name for name in FOLD_SPLITS if trained[name] != data.digest(name)]
    if different:
        raise InputError(
            f"{' and '.join(different)} of {data.root} have other images or masks than those that "
            f"{path} was trained with. A resume would compare its best score with scores of other "
            "images. Resume with the dataset of that time, or start a new training from its "
            f"weights: --model.weights {path}."
        )


def _is_same(arch: str, name: str, given: Any, trained: Any) -> bool:
    """Whether two values of an argument of the task mean the same.

    Arguments of an architecture that are not given have their defaults; where the encoder's weights
    came from does not matter any more.
    """
    if name == "arch_args":
        architecture = find_architecture(arch)
        given = fill_defaults(architecture, given)
        trained = fill_defaults(architecture, trained)
        given["encoder_weights"] = None
        trained["encoder_weights"] = None
    return (given or {}) == (trained or {})


def is_finished(
    checkpoint: dict[str, Any], trainer: Mapping[str, Any], patience: int | None = None
) -> bool:
    """Whether all epochs or steps are done, or early stopping has ended the training.

    Args:
        checkpoint: see `ovseg.core.checkpoints.read_checkpoint`.
        trainer: the configuration's section.
        patience: of early stopping; None for that of the training.
    """
    epochs = epochs_done(checkpoint)
    max_epochs = trainer["max_epochs"] or 1000  # Lightning's default
    if ends_within(max_epochs, epochs):
        return True
    if ends_within(trainer.get("max_steps"), checkpoint["global_step"]):
        return True
    return stopped_early(checkpoint, patience) and epochs >= (trainer["min_epochs"] or 0)


def _check_progress(config: Any, checkpoint: dict[str, Any]) -> None:
    path = config.ckpt_path
    max_epochs = config.trainer.max_epochs
    done = epochs_done(checkpoint)
    another = f"To start a new training from its weights, set --model.weights {path} instead."
    if ends_within(max_epochs, done):
        raise InputError(
            f"{path} has done {done} epochs of trainer.max_epochs {max_epochs}. Raise it to "
            f"continue. {another}"
        )
    patience = config.early_stopping.patience
    if stopped_early(checkpoint, patience) and done >= (config.trainer.min_epochs or 0):
        raise InputError(
            f"Early stopping had ended the training of {path} after {done} epochs, so there is "
            f"nothing to resume. Raise early_stopping.patience {patience} if it ran out. {another}"
        )
    # An epoch whose validation was stopped has done all batches, but does not count as processed.
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    in_batches = batches["current"]["ready"] and not batches["is_last_batch"]
    if in_batches or epochs["ready"] != epochs["processed"]:
        raise InputError(
            f"{path} was stopped inside an epoch, which cannot be finished. Resume from last.ckpt."
        )
