"""Progress of a training in a log file."""

import sys
import time
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar

from ovseg.core.console import EVERY_SECONDS
from ovseg.training.callbacks.curves import CURVES


class LineProgress(ProgressBar):
    """One line an epoch, and one every `every_seconds` during a long epoch."""

    def __init__(self, every_seconds: float = EVERY_SECONDS):
        super().__init__()
        self.every_seconds = every_seconds
        self.enabled = True
        self.epoch_began = time.monotonic()
        self.last_line = self.epoch_began

    def disable(self) -> None:
        """Called by Lightning in all processes but the first."""
        self.enabled = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epoch_began = time.monotonic()
        self.last_line = self.epoch_began

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._print_if_due(trainer, f"batch {batch_idx + 1}/{self.total_train_batches}")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            total = sum(trainer.num_val_batches)
            self._print_if_due(trainer, f"validation batch {batch_idx + 1}/{total}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = []
        for name in ("train_loss", "val_loss", *CURVES):
            if name in trainer.callback_metrics:
                parts.append(f"{name} {float(trainer.callback_metrics[name]):.4f}")
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        parts.append(f"lr {rate:.2e}")
        parts.append(f"{time.monotonic() - self.epoch_began:.1f} s")
        self._print(trainer, "  ".join(parts))

    def _print_if_due(self, trainer: Trainer, text: str) -> None:
        now = time.monotonic()
        if now - self.last_line > self.every_seconds:
            self._print(trainer, f"{text}  {now - self.epoch_began:.0f} s")

    def _print(self, trainer: Trainer, text: str) -> None:
        self.last_line = time.monotonic()
        if self.enabled and trainer.is_global_zero:
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            print(f"{epoch}  {text}", file=sys.stderr, flush=True)
