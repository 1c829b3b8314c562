"""The random numbers of an epoch."""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class EpochSeed(Callback):
    """Seeds torch at each epoch from (seed, epoch, process).

    Dropout after a resume is then what it would have been without the interruption.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        of_epoch = 1_000_003 * trainer.current_epoch
        of_process = 7919 * trainer.global_rank
        torch.manual_seed(self.seed + of_epoch + of_process)
