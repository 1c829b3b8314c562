"""The LightningModule of an adaptation: the task of `ovseg train` and discriminators."""

from typing import Any, cast

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from ovseg.adaptation.data import AdaptationDataModule
from ovseg.adaptation.methods import METHODS, Adaptation, StepLosses
from ovseg.core.checkpoints import DATA_STATE
from ovseg.core.errors import InputError
from ovseg.metrics import dice_coef, lesion_probs, monitor_mode
from ovseg.training.schedules import STEPWISE, Length, build_scheduler
from ovseg.training.task import SegmentationTask

STATE = "adaptation"  # the key of what a checkpoint keeps besides that of an ordinary run
METHOD = "method."  # how names of the discriminators' tensors begin
BETAS = (0.9, 0.99)  # of the discriminators' Adam, as in AdapSegNet and DS2Net


class AdaptationTask(SegmentationTask):
    """Trains a network on labelled images of the source and unlabelled ones of the target.

    The network's and the discriminators' losses are of the same forward pass, and no gradient of
    one reaches the other, so one backward pass serves both optimisers. It is the same as first a
    step of the network, then one of the discriminators on detached maps, and needs no more from a
    distributed training than an ordinary step.

    Checkpoints are those of an ordinary run; what only the adaptation needs is under `STATE`.

    Its arguments are those of `SegmentationTask`. `adapt` must be called before training.

    Attributes:
        settings: of the adaptation; None before `adapt`.
        target_digest: SHA-256 of the target's images, which the checkpoints keep.
    """

    method: nn.Module  # one of `METHODS`
    settings: Adaptation | None = None
    target_digest: str | None = None

    def adapt(self, settings: Adaptation, image_size: int) -> None:
        """Add the discriminators.

        Args:
            settings: of the adaptation.
            image_size: side of the images, pixels.

        Raises:
            InputError: the network does not fit the method, the images are too small, or the
                schedule watches a score.
        """
        scheduler = self.hparams["scheduler"]
        if scheduler is not None and scheduler not in STEPWISE:
            raise InputError(
                f"model.scheduler {scheduler} watches the validation, which says nothing of the "
                f"target. Set it to null or one of: {', '.join(STEPWISE)}."
            )
        self.automatic_optimization = False
        kind = METHODS[settings.method]
        self.method = kind(self.network, self.classes, settings.channels, image_size)
        self.settings = settings

    def training_step(self, batch: dict, _: int) -> Tensor:
        """One step of the network and one of the discriminators."""
        assert self.settings is not None
        losses: StepLosses = self.method(self.network, batch, self.loss)
        adversarial = self.settings.weight * _add_up(losses.adversarial)
        network_loss = _add_up(losses.segmentation) + adversarial
        discriminator_loss = self.settings.weight * _add_up(losses.discriminators)

        network_optimizer, discriminator_optimizer = cast(
            list[LightningOptimizer], self.optimizers()
        )
        network_optimizer.zero_grad()
        discriminator_optimizer.zero_grad()
        self.manual_backward(network_loss + discriminator_loss)
        network_optimizer.step()
        # Lightning would count a step of its own for it: trainer.max_steps counts batches.
        discriminator_optimizer.optimizer.step()
        for config in self.trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            schedule.step()

        coef = dice_coef(lesion_probs(losses.logits.detach()), batch["mask"] > 0)
        values = {"train_loss": network_loss, "train_dice_coef": coef}
        for group in (losses.segmentation, losses.adversarial, losses.discriminators):
            values |= {f"train_{name}": value for name, value in group.items()}
        self.log_dict(
            {name: value.detach() for name, value in values.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(losses.logits),
            sync_dist=True,
        )
        return network_loss.detach()

    def _build_optimization(self, length: Length) -> Any:
        """The network's optimiser and schedule, then the discriminators' with the same schedule."""
        of_network = super()._build_optimization(length)
        if self.settings is None:  # the constructor checks the network's alone
            return of_network
        if not isinstance(of_network, dict):
            of_network = {"optimizer": of_network}
        optimizer = torch.optim.Adam(self.method.parameters(), lr=self.settings.lr, betas=BETAS)
        of_discriminators: dict[str, Any] = {"optimizer": optimizer}
        if "lr_scheduler" in of_network:
            arguments = self.hparams["scheduler_args"] or {}
            mode = monitor_mode(self.hparams["monitor"])
            name = self.hparams["scheduler"]
            of_discriminators["lr_scheduler"] = {
                **of_network["lr_scheduler"],
                "scheduler": build_scheduler(name, optimizer, mode, length, **arguments),
            }
        return of_network, of_discriminators

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what only the adaptation needs apart from what an ordinary run has."""
        super().on_save_checkpoint(checkpoint)
        assert self.settings is not None
        state = checkpoint["state_dict"]
        own = {name: state.pop(name) for name in list(state) if name.startswith(METHOD)}
        checkpoint[STATE] = {
            "settings": vars(self.settings),
            "target_digest": self.target_digest,
            "state_dict": own,
        }
        checkpoint[DATA_STATE] = checkpoint.pop(AdaptationDataModule.__qualname__)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the parts where Lightning looks for them."""
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **checkpoint[STATE]["state_dict"]}
        checkpoint[AdaptationDataModule.__qualname__] = checkpoint[DATA_STATE]


def _add_up(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()
