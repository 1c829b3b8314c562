"""What happens around training: checkpoints, snapshots, curves, progress, stopping."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException

from ovseg.core.drawing import PALETTE, PRED, case_row, contact_sheet, paint
from ovseg.core.errors import InputError
from ovseg.core.files import atomic_path, write_image, write_table
from ovseg.core.plots import draw_curves
from ovseg.core.runs import RunFolder
from ovseg.data.geometry import place
from ovseg.data.pairs import read_image, read_pair
from ovseg.metrics import SCORES, monitor_mode, predict
from ovseg.training.ema import averaged

CURVES = [f"val_{name}" for name, score in SCORES.items() if score.in_curves]


class BestCheckpoint(ModelCheckpoint):
    """Keeps `checkpoints/best.ckpt`, the epoch with the best monitored value.

    A resumed run has a folder of its own; the best checkpoint so far is copied into it, with its score.

    Args:
        monitor: logged name; a loss is best low, a score high.
    """

    def __init__(self, monitor: str = "val_loss"):
        options = {"save_on_train_epoch_end": True, "enable_version_counter": False}
        super().__init__(filename="best", monitor=monitor, mode=monitor_mode(monitor), **options)
        self.resumed_run = RunFolder(Path())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        new = Path(self.dirpath) / "best.ckpt"
        old = Path(state_dict["best_model_path"])
        if not old.is_file():  # the run was moved
            old = self.resumed_run.checkpoint("best")
        if not old.is_file():
            rank_zero_info(
                f"The best checkpoint so far, {old}, is gone: the best is looked for from here on."
            )
            return
        if old != new:
            new.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(new) as temporary:
                shutil.copyfile(old, temporary)
        score = state_dict["best_model_score"]
        kept = {
            "best_k_models": {str(new): score},
            "kth_best_model_path": str(new),
            "best_model_path": str(new),
        }
        super().load_state_dict(
            {**state_dict, **kept, "dirpath": self.dirpath, "last_model_path": ""}
        )


class LastCheckpoint(ModelCheckpoint):
    """Keeps `checkpoints/last.ckpt`, the last complete epoch: a resume from it equals an uninterrupted run."""

    def __init__(self) -> None:
        super().__init__(
            filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take over: the resumed run writes its own file."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch that max_time or max_steps cut short is not kept: a resume could not finish it."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the last complete epoch is kept."""

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """On Ctrl-C or SIGTERM keep the unfinished epoch's weights for evaluate and infer, as `interrupted.ckpt`.

        With several processes only `last.ckpt` is kept.
        """
        if (
            not isinstance(exception, KeyboardInterrupt | SIGTERMException)
            or trainer.fast_dev_run
            or trainer.sanity_checking
        ):
            return
        run = RunFolder(Path(self.dirpath).parent)
        if trainer.world_size == 1:
            trainer.save_checkpoint(run.checkpoint("interrupted"))
        last = run.checkpoint("last")
        remedy = f"Go on with --ckpt_path {last}" if last.is_file() else "No epoch is complete yet"
        rank_zero_info(f"Stopped in epoch {trainer.current_epoch + 1}. {remedy}.")


class EpochSeed(Callback):
    """Seeds torch at each epoch from (seed, epoch, process), so dropout after a resume is what it would have been."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed(
            self.seed + 1_000_003 * trainer.current_epoch + 7919 * trainer.global_rank
        )


class BreakTraining(Callback):
    """Ends training after the epoch in which a file `break_training` appears in the run folder, and removes it."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        path = RunFolder(Path(trainer.log_dir)).break_file
        if trainer.strategy.reduce_boolean_decision(path.exists(), all=False):
            trainer.should_stop = True
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                path.unlink(missing_ok=True)
            rank_zero_info(f"{path} found: training ends after epoch {trainer.current_epoch + 1}.")


class HistoryPlots(Callback):
    """Curves as CSV and PNG, drawn again each epoch: `train_losses` and `train_metrics`, epochs counted from 1.

    The rows travel in the checkpoint, so the curves of a resumed run begin with epoch 1.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        names = {"loss": "train_loss", "val_loss": "val_loss", "dice_coef": "train_dice_coef"}
        names |= {name: name for name in CURVES}
        row = {name: values[logged] for name, logged in names.items() if logged in values}
        self.rows.append({"epoch": trainer.current_epoch + 1, **row})
        run = RunFolder(Path(trainer.log_dir))
        if trainer.is_global_zero:
            history = pd.DataFrame(self.rows)
            losses = ("loss", "val_loss")
            self._write(history, run, "losses", [name for name in history if name in losses])
            others = [name for name in history if name not in ("epoch", *losses)]
            self._write(history, run, "metrics", others)

    def _write(self, history: pd.DataFrame, run: RunFolder, kind: str, columns: list[str]) -> None:
        table = history[["epoch", *columns]]
        write_table(run.curves(kind, ".csv"), table)
        draw_curves(table, run.curves(kind, ".png"))


class EpochSnapshots(Callback):
    """What the network predicts for a few images after every epoch, on the training device.

    Writes `epoch_change_infer/Epoch_<n>_<stem>.png` (the prediction over the image) and the contact sheet
    `epoch_change_infer/Epoch_<n>.png` (image, reference, prediction; categories with a legend); epochs are counted
    from 1.

    Args:
        num_infer_images: how many; 0 writes none.
    """

    def __init__(self, num_infer_images: int = 6):
        if num_infer_images < 0:
            raise InputError(
                f"snapshots.num_infer_images is {num_infer_images}, expected 0 or more."
            )
        self.num_infer_images = num_infer_images

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = RunFolder(Path(trainer.log_dir or ".")).snapshots  # log_dir asks all processes
        if trainer.fast_dev_run or not self.num_infer_images or not trainer.is_global_zero:
            return
        data, rows, name = trainer.datamodule, [], f"Epoch_{trainer.current_epoch + 1}"
        settings = data.hparams
        with averaged(trainer, pl_module):
            for pair in data.mini_test_pairs(self.num_infer_images):
                if pair.mask_path is None:
                    pictures = (read_image(pair.image_path),)
                else:
                    pictures = read_pair(pair, settings.mask_threshold, settings.classes)
                image, *masks = (
                    place(picture, settings.image_size, settings.fit) for picture in pictures
                )
                mask = masks[0] if masks else None
                pred = self._predict(trainer, pl_module, image)
                picture = paint(image, pred, PALETTE if data.categories else (PRED,))
                write_image(folder / f"{name}_{pair.stem}.png", picture)
                rows.append(case_row(image, mask, pred, pair.stem, classes=settings.classes))
        write_image(folder / f"{name}.png", contact_sheet(rows, categories=data.categories))

    @torch.no_grad()
    def _predict(self, trainer: Trainer, pl_module: LightningModule, image: Any) -> Any:
        """Lesion or ids of one RGB square, uint8 (S, S, 3) -> bool or uint8 (S, S)."""
        was_training = pl_module.training
        pl_module.eval()
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(pl_module.device)
        with trainer.precision_plugin.val_step_context():
            pred = predict(pl_module(pixels))[0, 0].cpu().numpy()
        pl_module.train(was_training)
        return pred


class LineProgress(ProgressBar):
    """Progress for a log file: one line an epoch, and one each half minute while an epoch goes on."""

    def __init__(self, every_seconds: float = 30.0):
        super().__init__()
        self.every_seconds = every_seconds
        self.enabled = True
        self.epoch_began = self.last_line = time.monotonic()

    def disable(self) -> None:
        self.enabled = False

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self.epoch_began = self.last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *arguments: Any
    ) -> None:
        self._line_if_due(trainer, f"batch {arguments[-1] + 1}/{self.total_train_batches}")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *arguments: Any
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._line_if_due(
                trainer, f"validation batch {arguments[2] + 1}/{sum(trainer.num_val_batches)}"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown = ("train_loss", "val_loss", *CURVES)
        values = {
            name: trainer.callback_metrics[name]
            for name in shown
            if name in trainer.callback_metrics
        }
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        text = "  ".join(f"{name} {float(value):.4f}" for name, value in values.items())
        self._print(trainer, f"{text}  lr {rate:.2e}  {time.monotonic() - self.epoch_began:.1f} s")

    def _line_if_due(self, trainer: Trainer, text: str) -> None:
        if time.monotonic() - self.last_line > self.every_seconds:
            self._print(trainer, f"{text}  {time.monotonic() - self.epoch_began:.0f} s")

    def _print(self, trainer: Trainer, text: str) -> None:
        self.last_line = time.monotonic()
        if self.enabled and trainer.is_global_zero:
            print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}",
                file=sys.stderr,
                flush=True,
            )
