"""The LightningModule: it joins network, loss, scores and optimiser, and knows nothing of files."""

import math
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ovseg.core.checkpoints import fill_network, read_checkpoint
from ovseg.core.errors import InputError
from ovseg.core.registry import check_arguments
from ovseg.metrics import OnlineScores, dice_coef, lesion_probs, monitor_mode
from ovseg.models import build_model
from ovseg.training.losses import build_loss
from ovseg.training.optim import find_encoder, optimize_network
from ovseg.training.schedules import (
    ANY_LENGTH,
    STEPWISE,
    Length,
    build_scheduler,
    check_length,
)
from ovseg.training.weights import load_weights


def allow_tf32(allowed: bool) -> None:
    """Let CUDA round the factors of float32 products to 10 bits (TF32), or forbid it.

    Nothing changes on a CPU.
    """
    # With torch's newer flags of single operations, reading the flag of all of cuDNN, as the ONNX
    # exporter does, raises an error (torch 2.14.1).
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


class SegmentationTask(LightningModule):
    """A network in training.

    `SegmentationTask.load_from_checkpoint(path)` needs no other file, and no download.

    Args:
        arch: architecture, see `ovseg.models.list_models()`; or `package.module.Class` of your own.
        arch_args: its constructor arguments.
        weights: start from the weights of this checkpoint or run folder, of the same architecture;
            the head of another number of classes stays as initialised. Optimiser, schedule, epochs
            and best score start afresh, and no encoder weights are loaded. A resume and a reload
            have the weights of their own checkpoint instead.
        loss: see `ovseg.training.losses.LOSSES`, and `CATEGORY_LOSSES` where `arch_args` has
            `classes` above 1; or `package.module.name` of a function of your own.
        loss_args: its arguments after logits and mask.
        optimizer: see `ovseg.training.optim.OPTIMIZERS`.
        optimizer_args: its arguments (`lr`, ...).
        scheduler: see `ovseg.training.schedules.SCHEDULERS`; null keeps the rate constant.
        scheduler_args: its arguments.
        monitor: logged name that a plateau schedule watches; a loss is best low, a score high.
        channels_last: hold weights, and so all maps, channels last from the start of training.
            segmentation-models-pytorch's U-Net with EfficientNet-lite0 takes 14 % less time on a
            CPU; with torch's own dilated convolutions the backward pass can take a hundred times as
            long.
        compile: compile the network when training starts (minutes, once); checkpoints are the same
            with and without.
        tf32: train in TF32 on GPUs that have it (see `allow_tf32`), several times as fast as
            float32.
        encoder_lr_factor: the encoder's learning rate is the optimiser's times this.
        freeze_encoder_epochs: the encoder, the statistics of its norms included, does not change
            for this number of epochs.

    Raises:
        InputError: an unknown name or argument, or weights that do not fit.
    """

    def __init__(
        self,
        arch: str = "flexible_unet",
        arch_args: dict[str, Any] | None = None,
        weights: str | None = None,
        loss: str = "bce_dice_loss",
        optimizer: str = "adam",
        optimizer_args: dict[str, Any] | None = None,
        scheduler: str | None = None,
        scheduler_args: dict[str, Any] | None = None,
        monitor: str = "val_loss",
        channels_last: bool = False,
        compile: bool = False,
        tf32: bool = True,
        encoder_lr_factor: float = 1.0,
        freeze_encoder_epochs: int = 0,
        loss_args: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.save_hyperparameters(ignore="weights")
        arguments = arch_args or {}
        if weights is not None and arguments.get("encoder_weights"):
            arguments = {**arguments, "encoder_weights": None}
        self.classes = arguments.get("classes", 1)
        self.network = build_model(arch, **arguments)
        if weights is not None:
            load_weights(self.network, weights, arch, self.classes)
        self.loss = build_loss(loss, self.classes, loss_args)
        self.scores = nn.ModuleDict(
            {"val": OnlineScores(self.classes), "test": OnlineScores(self.classes)}
        )
        if freeze_encoder_epochs < 0:
            raise InputError(
                f"model.freeze_encoder_epochs is {freeze_encoder_epochs}, expected 0 or more."
            )
        # So that a wrong name or argument is found before the data are verified.
        self._build_optimization(ANY_LENGTH)

    def setup(self, stage: str) -> None:
        """Check that the masks are of as many classes as the network.

        Raises:
            InputError: they are not; the network would train or be scored on nonsense.
        """
        settings = getattr(self.trainer.datamodule, "hparams", {})  # type: ignore[attr-defined]
        classes = settings.get("classes", self.classes)
        if classes != self.classes:
            raise InputError(
                f"model.arch_args.classes is {self.classes}, but data.classes is {classes}. "
                "Set both to the same number."
            )

    def on_fit_start(self) -> None:
        """Change how the network computes, in place: the state dict keeps its names and numbers."""
        allow_tf32(self.hparams["tf32"])
        if self.hparams["channels_last"]:
            self.network.to(memory_format=torch.channels_last)
        if self.hparams["compile"]:
            self.network.compile()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the name of downloaded weights out of the hyper-parameters.

        A reload has the checkpoint's own weights and should download nothing.
        """
        hyper_parameters = checkpoint["hyper_parameters"]
        arguments = hyper_parameters.get("arch_args") or {}
        if arguments.get("encoder_weights"):
            hyper_parameters["arch_args"] = {**arguments, "encoder_weights": None}

    def forward(self, image: Tensor) -> Tensor:
        """Plain pixels (N, 3, H, W), 0..255 RGB -> logits (N, classes, H, W)."""
        return self.network(image)

    def training_step(self, batch: dict, _: int) -> Tensor:
        """The loss of a batch."""
        logits = self(batch["image"])
        loss = self.loss(logits, batch["mask"])
        coef = dice_coef(lesion_probs(logits.detach()), batch["mask"] > 0)
        self.log_dict(
            {"train_loss": loss, "train_dice_coef": coef},
            on_step=False,
            on_epoch=True,
            batch_size=len(logits),
            sync_dist=True,
        )
        return loss

    def validation_step(self, batch: dict, _: int) -> None:
        """Score a batch of the validation split."""
        self._score("val", batch)

    def test_step(self, batch: dict, _: int) -> None:
        """Score a batch of the test split."""
        self._score("test", batch)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _score(self, stage: str, batch: dict) -> None:
        logits = self(batch["image"])
        loss = self.loss(logits, batch["mask"])
        counted = batch["stem"][0] != ""
        self._scores_of(stage).update(loss, logits, batch["mask"], counted=counted)

    def _log_scores(self, stage: str) -> None:
        scores = self._scores_of(stage)
        values = {f"{stage}_{name}": value.float() for name, value in scores.compute().items()}
        self.log_dict(values, sync_dist=True)
        scores.reset()

    def _scores_of(self, stage: str) -> OnlineScores:
        return cast(OnlineScores, self.scores[stage])

    def on_train_start(self) -> None:
        """Check that a resumed schedule was made for this training."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for config in self.trainer.lr_scheduler_configs:
            check_length(config.scheduler, self.trainer.estimated_stepping_batches)

    def on_train_epoch_start(self) -> None:
        """Put a frozen encoder into evaluation mode, and back into training mode later.

        Own code instead of Lightning's BackboneFinetuning, which sets `requires_grad`: see
        `on_before_optimizer_step`.
        """
        if self.hparams["freeze_encoder_epochs"]:
            self._encoder().train(not self._is_encoder_frozen())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop a frozen encoder's gradients before they are clipped, so that no optimiser moves it.

        `requires_grad` is not changed: with several processes the gradients that they exchange are
        chosen at the start, and those of the encoder would never be exchanged.
        """
        if self._is_encoder_frozen():
            for parameter in self._encoder().parameters():
                parameter.grad = None

    def _is_encoder_frozen(self) -> bool:
        return self.current_epoch < self.hparams["freeze_encoder_epochs"]

    def _encoder(self) -> nn.Module:
        encoder = find_encoder(self.network)
        assert encoder is not None  # `optimize_network` has checked it
        return encoder

    def on_train_epoch_end(self) -> None:
        """Step plateau schedules.

        Lightning does so after it has written the checkpoints, so that a resume would lose a step.
        An epoch in which the value is NaN is not counted.
        """
        for config in self.trainer.lr_scheduler_configs:
            monitor = config.monitor
            if not config.reduce_on_plateau or monitor not in self.trainer.callback_metrics:
                continue
            value = self.trainer.callback_metrics[monitor].item()
            if not math.isnan(value):
                schedule = cast(torch.optim.lr_scheduler.ReduceLROnPlateau, config.scheduler)
                schedule.step(value)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step schedules that watch no value; `on_train_epoch_end` steps the others."""
        if metric is None:
            scheduler.step()

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule; the length of the training is known only here."""
        scheduler = self.hparams["scheduler"]
        # A dev run is too short for any schedule.
        if scheduler not in STEPWISE or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return self._build_optimization(ANY_LENGTH)
        # Makes the loaders, whose lengths the next lines need.
        self.trainer.fit_loop.setup_data()
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise InputError(f"The schedule {scheduler} needs an end: set trainer.max_epochs.")
        batches = self.trainer.num_training_batches
        epoch = math.ceil(batches / self.trainer.accumulate_grad_batches)
        return self._build_optimization(Length(int(steps), epoch))

    def _build_optimization(self, length: Length) -> Any:
        """What Lightning takes: an optimiser, or a dict of it and its schedule."""
        settings = self.hparams
        optimizer = optimize_network(
            self.network,
            settings["optimizer"],
            settings["optimizer_args"] or {},
            settings["encoder_lr_factor"],
            separate_encoder=settings["freeze_encoder_epochs"] > 0,
        )
        name = settings["scheduler"]
        if name is None:
            return optimizer
        mode = monitor_mode(settings["monitor"])
        arguments = settings["scheduler_args"] or {}
        schedule: dict[str, Any] = {
            "scheduler": build_scheduler(name, optimizer, mode, length, **arguments)
        }
        if name in STEPWISE:
            schedule["interval"] = "step"
        else:
            schedule["monitor"] = settings["monitor"]
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def load_task(path: Path) -> SegmentationTask:
    """The task of a checkpoint, on the CPU.

    Unlike Lightning's `load_from_checkpoint` it takes plain values of known names only.

    Raises:
        InputError: the file is no whole checkpoint, has other settings than a task, or its weights
            are not those of its network.
    """
    checkpoint = read_checkpoint(path)
    settings = checkpoint["hyper_parameters"]
    check_arguments(f"the task of {path}", SegmentationTask, settings)
    task = SegmentationTask(**settings)
    fill_network(task, checkpoint["state_dict"], path)
    return task
