"""The LightningModule: it wires network, loss, scores and optimiser together and knows nothing of files."""

import math
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from ovseg.core.errors import InputError
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


def allow_tf32(allowed: bool) -> None:
    """Let CUDA round the factors of float32 products to 10 bits (TF32), or forbid it; nothing changes on a CPU."""
    # torch's newer flag for each operation leaves the two of cuDNN apart, which its ONNX exporter refuses to read
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


class SegmentationTask(LightningModule):
    """A network in training: `SegmentationTask.load_from_checkpoint(path)` needs no other file, and no download.

    Args:
        arch: architecture, see `ovseg.models.list_models()`.
        arch_args: its constructor arguments.
        loss: see `ovseg.training.losses.LOSSES`, and `CATEGORY_LOSSES` where `arch_args` has `classes` above 1.
        optimizer: see `ovseg.training.optim.OPTIMIZERS`.
        optimizer_args: its arguments (`lr`, ...).
        scheduler: see `ovseg.training.schedules.SCHEDULERS`; null keeps the rate constant.
        scheduler_args: its arguments.
        monitor: logged name that a plateau schedule watches; a loss is best low, a score high.
        channels_last: hold weights, and so all maps, channels last from the start of training. segmentation-models-
            pytorch's U-Net with EfficientNet-lite0 takes 14 % less time on a CPU; with dilated convolutions of torch's
            own the backward pass can take a hundredfold.
        compile: compile the network when training starts (minutes, once); checkpoints are the same with and without.
        tf32: train in TF32 on GPUs that have it (see `allow_tf32`): several times as fast as float32 proper.
        encoder_lr_factor: the encoder's learning rate is the optimiser's times this.
        freeze_encoder_epochs: for so many epochs the encoder stays as it is, its norms' statistics too.

    Raises:
        InputError: an unknown name or argument.
    """

    def __init__(
        self,
        arch: str = "flexible_unet",
        arch_args: dict[str, Any] | None = None,
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
    ):
        super().__init__()
        self.save_hyperparameters()
        self.classes = (arch_args or {}).get("classes", 1)
        self.network = build_model(arch, **(arch_args or {}))
        self.loss = build_loss(loss, self.classes)
        self.scores = torch.nn.ModuleDict(
            {stage: OnlineScores(self.classes) for stage in ("val", "test")}
        )
        if freeze_encoder_epochs < 0:
            raise InputError(
                f"model.freeze_encoder_epochs is {freeze_encoder_epochs}, expected 0 or more."
            )
        self._optimization(
            ANY_LENGTH
        )  # a wrong name or argument shows here, not after the data are verified

    def setup(self, stage: str) -> None:
        """Masks of ids for a network of one class, or the other way round, would train or score nonsense."""
        settings = getattr(self.trainer.datamodule, "hparams", {})
        if settings.get("classes", self.classes) != self.classes:
            raise InputError(
                f"model.arch_args.classes is {self.classes}, but data.classes is {settings['classes']}. "
                "Set both to the same number."
            )

    def on_fit_start(self) -> None:
        """Change how the network computes, in place: no name or number in the state dict differs."""
        allow_tf32(self.hparams.tf32)
        if self.hparams.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if self.hparams.compile:
            self.network.compile()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the name of downloaded weights out of the hyper-parameters: a reload brings its own."""
        arguments = checkpoint["hyper_parameters"].get("arch_args") or {}
        if arguments.get("encoder_weights"):
            checkpoint["hyper_parameters"]["arch_args"] = {**arguments, "encoder_weights": None}

    def forward(self, image: Tensor) -> Tensor:
        """Plain pixels (N, 3, H, W), 0..255 RGB -> logits (N, classes, H, W)."""
        return self.network(image)

    def training_step(self, batch: dict, _: int) -> Tensor:
        loss, logits = self._step(batch, "train")
        options = {"on_step": False, "on_epoch": True, "batch_size": len(logits), "sync_dist": True}
        self.log("train_loss", loss, **options)
        self.log(
            "train_dice_coef",
            dice_coef(lesion_probs(logits.detach()), batch["mask"] > 0),
            **options,
        )
        return loss

    def validation_step(self, batch: dict, _: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: dict, _: int) -> None:
        self._step(batch, "test")

    def on_train_start(self) -> None:
        for config in [] if self.trainer.fast_dev_run else self.trainer.lr_scheduler_configs:
            check_length(config.scheduler, self.trainer.estimated_stepping_batches)

    def on_train_epoch_start(self) -> None:
        """Statistics and dropout of a frozen encoder rest; it trains as the rest does from then on."""
        if self.hparams.freeze_encoder_epochs:
            find_encoder(self.network).train(not self._is_encoder_frozen())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop a frozen encoder's gradients, before they are clipped: without them no optimiser moves or decays it.

        `requires_grad` stays on: several processes settle at the start which gradients they exchange, and would never
        exchange those of the encoder.
        """
        if self._is_encoder_frozen():
            for parameter in find_encoder(self.network).parameters():
                parameter.grad = None

    def _is_encoder_frozen(self) -> bool:
        return self.current_epoch < self.hparams.freeze_encoder_epochs

    def on_train_epoch_end(self) -> None:
        """Step plateau schedules: Lightning does so after the checkpoints are written, so a resume lost a step."""
        for config in self.trainer.lr_scheduler_configs:
            if config.reduce_on_plateau and config.monitor in self.trainer.callback_metrics:
                config.scheduler.step(self.trainer.callback_metrics[config.monitor].item())

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Lightning's own step, for schedules that watch no metric."""
        if metric is None:
            scheduler.step()

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _step(self, batch: dict, stage: str) -> tuple[Tensor, Tensor]:
        logits = self(batch["image"])
        loss = self.loss(logits, batch["mask"])
        if stage != "train":
            self.scores[stage].update(loss, logits, batch["mask"], counted=batch["stem"][0] != "")
        return loss, logits

    def _log_scores(self, stage: str) -> None:
        scores = self.scores[stage]
        self.log_dict(
            {f"{stage}_{name}": value.float() for name, value in scores.compute().items()},
            sync_dist=True,
        )
        scores.reset()

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule; the length of the training is known here, and means nothing in a dev run."""
        if self.hparams.scheduler not in STEPWISE or self.trainer.fast_dev_run:
            return self._optimization(ANY_LENGTH)
        self.trainer.fit_loop.setup_data()
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise InputError(
                f"The schedule {self.hparams.scheduler} needs an end: set trainer.max_epochs."
            )
        epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return self._optimization(Length(steps, epoch))

    def _optimization(self, length: Length) -> Any:
        """What Lightning takes: the optimiser, and the schedule stepped with it or at each epoch's end on `monitor`."""
        settings = self.hparams
        optimizer = optimize_network(
            self.network, settings.optimizer, settings.optimizer_args or {}, settings.encoder_lr_factor,
            apart=settings.freeze_encoder_epochs > 0,
        )  # fmt: skip
        if settings.scheduler is None:
            return optimizer
        mode, arguments = monitor_mode(settings.monitor), settings.scheduler_args or {}
        scheduler = build_scheduler(settings.scheduler, optimizer, mode, length, **arguments)
        if settings.scheduler in STEPWISE:
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
            }
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": settings.monitor},
        }
