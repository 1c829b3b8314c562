"""What a resumed training may not change, and whether a checkpoint can be resumed at all.

The state itself is kept where it belongs, in each part's own `state_dict`: the order of the images
and their augmentation in `ovseg.data.datamodule`, the curves, the early stopping and the best
checkpoint so far in `ovseg.training.callbacks`, the averaged weights in `ovseg.training.ema`, and
the network, the optimiser and the schedule by Lightning.
"""

from typing import Any

from ovseg.core.checkpoints import epochs_done
from ovseg.core.errors import InputError
from ovseg.core.registry import fill_defaults
from ovseg.models import find_architecture
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
)


def check_checkpoint(config: Any, checkpoint: dict[str, Any]) -> None:
    """Check that a resume continues with the checkpoint's network, optimiser, schedule and fold.

    Args:
        config: the whole configuration.
        checkpoint: that of `config.ckpt_path`.

    Raises:
        InputError: they differ, or the checkpoint is not of the end of an epoch, or the training is
            complete.
    """
    path = config.ckpt_path
    remedy = "Resume with the run's own config.yaml."
    trained = fill_defaults(SegmentationTask, checkpoint["hyper_parameters"])
    for name in RESUMED:
        given = config.model[name]
        if not _is_same(config.model.arch, name, given, trained[name]):
            raise InputError(
                f"{path} was trained with model.{name} {trained[name]}, but the configuration has "
                f"{given}, which a resume would ignore. {remedy}"
            )
    fold = checkpoint["datamodule_hyper_parameters"].get("fold")
    if fold != config.data.fold:
        raise InputError(
            f"{path} was trained with data.fold {fold}, but the configuration has "
            f"{config.data.fold}, whose validation images it may have seen. {remedy}"
        )
    decay = decay_of(checkpoint)
    if decay != config.ema.decay:
        raise InputError(
            f"{path} was trained with ema.decay {decay}, but the configuration has "
            f"{config.ema.decay}. {remedy}"
        )
    _check_progress(path, config.trainer.max_epochs, checkpoint)


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


def _check_progress(path: str, max_epochs: int | None, checkpoint: dict[str, Any]) -> None:
    done = epochs_done(checkpoint)
    if ends_within(max_epochs, done):
        raise InputError(
            f"{path} has done {done} epochs of trainer.max_epochs {max_epochs}. Raise it to "
            "continue."
        )
    # An epoch whose validation was stopped has done all batches, but does not count as processed.
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    in_batches = batches["current"]["ready"] and not batches["is_last_batch"]
    if in_batches or epochs["ready"] != epochs["processed"]:
        raise InputError(
            f"{path} was stopped inside an epoch, which cannot be finished. Resume from last.ckpt."
        )
