"""What the network predicts for a few images after every epoch."""

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer

from ovseg.core.drawing import PALETTE, PRED, case_row, contact_sheet, paint
from ovseg.core.errors import InputError
from ovseg.core.files import fit_file_name, write_image
from ovseg.core.runs import RunFolder
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.geometry import place
from ovseg.data.pairs import Pair
from ovseg.data.pictures import read_image
from ovseg.metrics import predict
from ovseg.training.callbacks.shown import Shown
from ovseg.training.ema import averaged


class EpochSnapshots(Shown):
    """Predictions for a few images after every epoch, on the training device.

    Writes `epoch_change_infer/Epoch_<n>_<stem>.png` (the prediction over the image) and the contact
    sheet `epoch_change_infer/Epoch_<n>.png` (image, reference, prediction; categories with a
    legend). Epochs are counted from 1.

    Args:
        num_infer_images: how many; 0 writes none.

    Raises:
        InputError: a negative number.
    """

    what = "Snapshots"

    def __init__(self, num_infer_images: int = 6):
        if num_infer_images < 0:
            raise InputError(
                f"snapshots.num_infer_images is {num_infer_images}, expected 0 or more."
            )
        self.num_infer_images = num_infer_images

    def show(self, trainer: Trainer, pl_module: LightningModule, run: RunFolder) -> None:
        if self.num_infer_images == 0:
            return
        folder = run.snapshots
        data: OvarianTumorDataModule = trainer.datamodule  # type: ignore[attr-defined]
        colors = PALETTE if data.categories else (PRED,)
        name = f"Epoch_{trainer.current_epoch + 1}"
        rows = []
        with averaged(trainer, pl_module):
            for pair in data.mini_test_pairs(self.num_infer_images):
                image, mask = _read_placed(pair, data)
                pred = _predict(trainer, pl_module, image)
                picture = folder / fit_file_name(f"{name}_{pair.stem}", ".png")
                write_image(picture, paint(image, pred, colors))
                row = case_row(image, mask, pred, pair.stem, classes=data.hparams["classes"])
                rows.append(row)
        write_image(folder / f"{name}.png", contact_sheet(rows, categories=data.categories))


def _read_placed(pair: Pair, data: OvarianTumorDataModule) -> tuple[np.ndarray, np.ndarray | None]:
    """Image (S, S, 3) and mask (S, S) as the network gets them; None for a pair without a mask."""
    size = data.hparams["image_size"]
    fit = data.hparams["fit"]
    if pair.mask_path is None:
        return place(read_image(pair.image_path), size, fit), None
    image, mask = data.read_pair(pair)
    return place(image, size, fit), place(mask, size, fit)


@torch.no_grad()
def _predict(trainer: Trainer, pl_module: LightningModule, image: np.ndarray) -> np.ndarray:
    """Lesion or ids of one RGB square, uint8 (S, S, 3) -> bool or uint8 (S, S)."""
    was_training = pl_module.training
    pl_module.eval()
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(pl_module.device)
    try:
        with trainer.precision_plugin.val_step_context():
            return predict(pl_module(pixels))[0, 0].cpu().numpy()
    finally:
        pl_module.train(was_training)
