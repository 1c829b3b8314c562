"""What `train` refuses before work starts: settings that would fail after hours, do nothing, or be ignored."""

from typing import Any

from pytorch_lightning.utilities import rank_zero_info

from ovseg.core.errors import InputError
from ovseg.core.registry import fill_defaults
from ovseg.metrics import LOGGED_SCORES, monitor_mode
from ovseg.models import ARCHITECTURES
from ovseg.training.ema import decay_of
from ovseg.training.schedules import SCHEDULERS
from ovseg.training.task import SegmentationTask


def share_classes(config: Any) -> None:
    """`data.classes` is said once: the network gets as many, and the run's config.yaml shows both."""
    classes, arch_args = config.data.classes, config.model.arch_args or {}
    given = arch_args.get("classes", classes)
    if given != classes:
        raise InputError(
            f"model.arch_args.classes is {given}, but data.classes is {classes}. Set data.classes alone: "
            "the network follows it."
        )
    if classes > 1:
        config.model.arch_args = {**arch_args, "classes": classes}


def check_monitors(config: Any) -> None:
    """Monitored names must be logged, and validation must run at every epoch's end."""
    config.early_stopping.mode = monitor_mode(config.early_stopping.monitor)
    monitor_mode(config.best_checkpoint.monitor)
    monitor_mode(config.model.monitor)
    for name in ("early_stopping", "best_checkpoint", "model"):
        if LOGGED_SCORES[config[name].monitor].of_categories and config.data.classes == 1:
            raise InputError(
                f"{name}.monitor is {config[name].monitor}, which is logged only where data.classes is above 1. "
                "Set it to val_dice."
            )
    for name in ("max_epochs", "max_steps", "limit_train_batches", "accumulate_grad_batches"):
        if config.trainer[name] == 0:
            raise InputError(f"trainer.{name} is 0, so nothing would be trained. Raise it.")
    if config.trainer.limit_val_batches == 0 or (config.trainer.check_val_every_n_epoch or 0) != 1:
        raise InputError(
            "Best checkpoint, early stopping and schedule need a validation every epoch: leave "
            "trainer.check_val_every_n_epoch at 1 and trainer.limit_val_batches above 0."
        )


def check_schedule(config: Any) -> None:
    """A rate that can't fall, for training stops before, is a dead option, which configurations of others have."""
    patience, epochs, scheduler = (
        config.early_stopping.patience,
        config.trainer.max_epochs,
        config.model.scheduler,
    )
    if patience < 0:
        raise InputError(f"early_stopping.patience is {patience}, expected 0 or more.")
    frozen = config.model.freeze_encoder_epochs
    if frozen and epochs is not None and 0 < epochs <= frozen:
        raise InputError(
            f"model.freeze_encoder_epochs is {frozen} of trainer.max_epochs {epochs}, so the encoder would never "
            "train. Lower it."
        )
    if scheduler not in SCHEDULERS:
        return  # none, or the task's own error lists the choices
    arguments = fill_defaults(SCHEDULERS[scheduler], config.model.scheduler_args)
    wanted, warmup = arguments.get("patience"), arguments.get("warmup_epochs")
    if isinstance(warmup, int | float) and epochs is not None and 0 < epochs <= warmup:
        raise InputError(
            f"model.scheduler_args.warmup_epochs is {warmup} of trainer.max_epochs {epochs}, so the rate would only "
            "rise. Lower it."
        )
    later = scheduler == "plateau"  # torch's waits one epoch longer than Keras'
    if isinstance(wanted, int) and patience <= wanted + later:
        rank_zero_info(
            f"early_stopping.patience {patience} ends training before the schedule's "
            f"patience {wanted} can lower the rate. Raise early_stopping.patience above {wanted + later} if it "
            "should."
        )


def check_checkpoint(config: Any, checkpoint: dict[str, Any]) -> None:
    """A resume goes on with the network, optimiser and schedule of the checkpoint, at the end of an epoch."""
    path, here = config.ckpt_path, config.model
    there = fill_defaults(SegmentationTask, checkpoint["hyper_parameters"])
    names = (
        "arch",
        "arch_args",
        "optimizer",
        "optimizer_args",
        "scheduler",
        "scheduler_args",
        "loss",
    )
    for name in (*names, "encoder_lr_factor", "freeze_encoder_epochs"):
        ours, theirs = here[name], there[name]
        if name == "arch_args" and here["arch"] in ARCHITECTURES:
            ours, theirs = (
                fill_defaults(ARCHITECTURES[here["arch"]], value) for value in (ours, theirs)
            )
            ours["encoder_weights"] = theirs["encoder_weights"] = None
        if (ours or {}) != (theirs or {}):
            raise InputError(
                f"{path} was trained with model.{name} {there[name]}, but the configuration has {here[name]}, "
                "which a resume would ignore. Resume with the run's own config.yaml."
            )
    fold = checkpoint["datamodule_hyper_parameters"].get("fold")
    if fold != config.data.fold:
        raise InputError(
            f"{path} was trained with data.fold {fold}, but the configuration has {config.data.fold}, whose "
            "validation images it may have seen. Resume with the run's own config.yaml."
        )
    if decay_of(checkpoint) != config.ema.decay:
        raise InputError(
            f"{path} was trained with ema.decay {decay_of(checkpoint)}, but the configuration has "
            f"{config.ema.decay}. Resume with the run's own config.yaml."
        )
    _check_progress(path, config.trainer.max_epochs, checkpoint)


def _check_progress(path: str, max_epochs: int | None, checkpoint: dict[str, Any]) -> None:
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if max_epochs is not None and 0 < max_epochs <= done:
        raise InputError(
            f"{path} has done {done} epochs of trainer.max_epochs {max_epochs}. Raise it to go on."
        )
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    if progress["current"]["ready"] and not progress["is_last_batch"]:
        raise InputError(
            f"{path} was stopped inside an epoch, which cannot be finished. Resume from last.ckpt."
        )
