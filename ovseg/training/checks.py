"""What `train` refuses before work starts.

These are settings that would fail after hours, do nothing, or be ignored. Those of a resumed
training are in `ovseg.training.resume`.
"""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from ovseg.core.checkpoints import digests_of, find_checkpoint, read_checkpoint
from ovseg.core.errors import InputError, first_five
from ovseg.core.registry import fill_defaults
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.tree import FOLD_SPLITS
from ovseg.metrics import LOGGED_SCORES, monitor_mode
from ovseg.training.callbacks.checkpoints import EPOCH
from ovseg.training.schedules import SCHEDULERS

# Settings of loops of Lightning that are not used.
UNUSED = ("limit_test_batches", "limit_predict_batches")
# What validation logs that has a value where no mask has a lesion.
VALUED_WITHOUT_LESIONS = ("val_loss", "val_dice_coef", "val_specificity")
TUNERS = (BatchSizeFinder, LearningRateFinder)


def share_classes(config: Any) -> None:
    """Give the network as many classes as `data.classes` says.

    Args:
        config: the whole configuration; it is changed, so that the run's config.yaml shows both.

    Raises:
        InputError: the two are given and differ.
    """
    classes = config.data.classes
    arch_args = config.model.arch_args or {}
    given = arch_args.get("classes", classes)
    if given != classes:
        raise InputError(
            f"model.arch_args.classes is {given}, but data.classes is {classes}. Set only "
            "data.classes: the network follows it."
        )
    if classes > 1:
        config.model.arch_args = {**arch_args, "classes": classes}


def check_monitors(config: Any) -> None:
    """Check that monitored names are logged, and that every epoch ends with a validation.

    Args:
        config: the whole configuration; early stopping's mode is set.

    Raises:
        InputError: a name that is not logged, no validation each epoch, or nothing to train.
    """
    config.early_stopping.mode = monitor_mode(config.early_stopping.monitor)
    for name in ("early_stopping", "best_checkpoint", "model"):
        monitor = config[name].monitor
        if name == "best_checkpoint" and monitor == EPOCH:
            continue
        monitor_mode(monitor)
        if LOGGED_SCORES[monitor].of_categories and config.data.classes == 1:
            raise InputError(
                f"{name}.monitor is {monitor}, which is logged only where data.classes is above "
                "1. Set it to val_dice."
            )
    for name in ("max_epochs", "max_steps", "limit_train_batches", "accumulate_grad_batches"):
        if config.trainer[name] == 0:
            raise InputError(f"trainer.{name} is 0, so nothing would be trained. Raise it.")
    every_epoch = config.trainer.check_val_every_n_epoch == 1
    if not every_epoch or config.trainer.limit_val_batches == 0:
        raise InputError(
            "Best checkpoint, early stopping and schedule need a validation every epoch: leave "
            "trainer.check_val_every_n_epoch at 1 and trainer.limit_val_batches above 0."
        )
    interval = config.trainer.val_check_interval
    if interval is not None and (interval != 1.0 or isinstance(interval, int)):
        raise InputError(
            f"trainer.val_check_interval is {interval}, but best checkpoint, early stopping and "
            "schedule look at the scores once, at the end of an epoch. Leave it out."
        )


def check_valid_is_trained_on(config: Any) -> None:
    """Refuse to choose on valid where it is trained on.

    Args:
        config: the whole configuration.

    Raises:
        InputError: `postprocess` is true and `data.train_on_valid` too.
    """
    if config.postprocess is True and config.data.train_on_valid:
        raise InputError(
            "data.train_on_valid leaves no image that is new to the network, so postprocess: true "
            "has nothing to choose on. Set the post-processing itself, such as "
            "postprocess: {flips: [horizontal]}, or postprocess: false."
        )


def check_lesions(config: Any, data: OvarianTumorDataModule) -> None:
    """Check that every monitored score has a value.

    Args:
        config: the whole configuration.
        data: verified.

    Raises:
        InputError: no image of `valid` has a lesion, but a score is monitored that needs one.
    """
    monitors = {name: config[name].monitor for name in ("early_stopping", "best_checkpoint")}
    if config.model.scheduler in SCHEDULERS:
        monitors["model"] = config.model.monitor
    without_value = []
    for name, monitor in monitors.items():
        if monitor.startswith("val_") and monitor not in VALUED_WITHOUT_LESIONS:
            without_value.append(f"{name}.monitor {monitor}")
    if without_value and not data.has_lesion("valid"):
        raise InputError(
            f"No image of valid in {data.root} has a lesion, so {first_five(without_value)} has "
            "no value. Set it to val_loss, or move images with a lesion to valid."
        )


def check_held_out(weights: str, fold: int | None, data: OvarianTumorDataModule) -> None:
    """Check that the weights have not seen the images that validate the new training.

    Args:
        weights: see `ovseg.training.task.SegmentationTask`.
        fold: that the new training holds out.
        data: verified.

    Raises:
        InputError: they were trained on the same images of train and valid, but held out others.
    """
    path = find_checkpoint(Path(weights))
    checkpoint = read_checkpoint(path)
    digests = digests_of(checkpoint)
    settings = checkpoint["datamodule_hyper_parameters"]
    trained_fold = settings.get("fold")
    if digests is None or data.hparams["train_on_valid"]:
        return
    if settings.get("train_on_valid") and digests["valid"] == data.digest("valid"):
        raise InputError(
            f"model.weights {path} were trained on the images of valid in {data.root} too "
            "(data.train_on_valid). Choose weights that were trained on other images."
        )
    share = data.hparams["valid_share"]
    other_share = share and share != settings.get("valid_share", 0.0)
    if other_share and digests["train"] == data.digest("train"):
        raise InputError(
            f"model.weights {path} were trained on the folder train of {data.root}, of which "
            f"data.valid_share is {share}: they may have seen its validation images. Choose "
            "weights that were trained on other images."
        )
    if trained_fold == fold:
        return
    if all(digests[name] == data.digest(name) for name in FOLD_SPLITS):
        raise InputError(
            f"model.weights {path} were trained on {data.root} with data.fold {trained_fold}, but "
            f"data.fold is {fold}, whose validation images they may have seen. Choose weights that "
            "were trained on other images."
        )


def check_unused(config: Any) -> None:
    """Refuse settings of Lightning's Trainer that nothing here reads.

    Raises:
        InputError: names them all.
    """
    given = [f"trainer.{name}" for name in UNUSED if config.trainer[name] is not None]
    if given:
        raise InputError(
            f"{first_five(given)} would do nothing: Lightning's own test and prediction are not "
            "used, and test is always scored whole. Leave it out; evaluate_test: false scores no "
            "test images."
        )


def check_callbacks(callbacks: list[Callback]) -> None:
    """Refuse callbacks that change a batch size or a rate that they cannot find.

    Args:
        callbacks: those of the configuration.

    Raises:
        InputError: names them all.
    """
    tuners = [type(each).__name__ for each in callbacks if isinstance(each, TUNERS)]
    if tuners:
        raise InputError(
            f"trainer.callbacks has {first_five(tuners)}, which cannot change "
            "data.batch_size or model.optimizer_args.lr. Search for them with `ovseg sweep`."
        )


def check_schedule(config: Any) -> None:
    """Check the schedule against the length of the training and early stopping.

    Warn if early stopping ends training before a plateau schedule can lower the learning rate;
    configurations of other people have that.

    Raises:
        InputError: patience below 0, or a warm-up or a frozen encoder as long as the training.
    """
    patience = config.early_stopping.patience
    max_epochs = config.trainer.max_epochs
    if patience < 0:
        raise InputError(f"early_stopping.patience is {patience}, expected 0 or more.")
    frozen = config.model.freeze_encoder_epochs
    if frozen and ends_within(max_epochs, frozen):
        raise InputError(
            f"model.freeze_encoder_epochs is {frozen} of trainer.max_epochs {max_epochs}, so the "
            "encoder would never train. Lower it."
        )
    scheduler = config.model.scheduler
    if scheduler not in SCHEDULERS:
        return  # none; or the error of the task, which lists the choices
    arguments = fill_defaults(SCHEDULERS[scheduler], config.model.scheduler_args)
    warmup = arguments.get("warmup_epochs")
    if isinstance(warmup, int | float) and ends_within(max_epochs, warmup):
        raise InputError(
            f"model.scheduler_args.warmup_epochs is {warmup} of trainer.max_epochs {max_epochs}, "
            "so the rate would only rise. Lower it."
        )
    waits = arguments.get("patience")
    if not isinstance(waits, int):
        return
    # torch's plateau waits one epoch longer than Keras'.
    lowers_at = waits + 1 if scheduler == "plateau" else waits
    if patience <= lowers_at:
        rank_zero_info(
            f"early_stopping.patience {patience} ends training before the schedule's patience "
            f"{waits} can lower the rate. Raise early_stopping.patience above {lowers_at} if it "
            "should."
        )


def ends_within(max_epochs: int | None, epochs: float) -> bool:
    """Whether training ends within so many epochs; None and -1 are no end."""
    return max_epochs is not None and 0 < max_epochs <= epochs


def check_own_network(arch: str, network: nn.Module, size: int, classes: int) -> None:
    """Check that a network that is not ovseg's takes and returns what ovseg's networks do.

    Args:
        arch: its name, for the message.
        network: on the CPU.
        size: side of the squares, pixels.
        classes: that it must return.

    Raises:
        InputError: it fails on a black image, or returns something else than logits.
    """
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    contract = f"uint8 (1, 3, {size}, {size}) to logits, float (1, {classes}, {size}, {size})"
    try:
        with torch.no_grad():
            logits = network.eval()(image)
    # Whatever the code of somebody else raises.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"model.arch {arch} fails ({reason}). Expected {contract}.") from error
    network.train()
    found = f"{type(logits).__name__}"
    if isinstance(logits, Tensor):
        if logits.shape == (1, classes, size, size) and logits.is_floating_point():
            return
        found = f"{logits.dtype} {tuple(logits.shape)}"
    raise InputError(f"model.arch {arch} returns {found}. Expected {contract}.")
