"""`ovseg adapt`: training on a labelled and an unlabelled domain."""

from pathlib import Path
from typing import Any, ClassVar, cast

from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from ovseg.adaptation.data import AdaptationDataModule
from ovseg.adaptation.methods import Adaptation
from ovseg.adaptation.task import STATE, AdaptationTask
from ovseg.core.errors import InputError
from ovseg.core.runs import RunFolder
from ovseg.evaluation.evaluate import Evaluation
from ovseg.evaluation.report import print_summary, report_evaluation
from ovseg.experiments.train import SECTIONS, TrainCLI

# Settings of an adaptation that a resume may change.
MOVABLE = "target_root"


class AdaptCLI(TrainCLI):
    """The command line of `ovseg adapt`: that of `train`, and the section `adaptation`."""

    command = "adapt"
    sections: ClassVar[dict[str, type]] = {
        **SECTIONS,
        "model": AdaptationTask,
        "data": AdaptationDataModule,
        "adaptation": Adaptation,
    }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Adaptation, "adaptation")

    def before_instantiate_classes(self) -> None:
        """Refuse settings that would fail or do nothing in an adaptation."""
        super().before_instantiate_classes()
        trainer = self.config.trainer
        if trainer.gradient_clip_val:
            raise InputError(
                "trainer.gradient_clip_val is for one optimiser, but an adaptation has two. Set it "
                "to null."
            )
        if trainer.accumulate_grad_batches != 1:
            raise InputError(
                "trainer.accumulate_grad_batches is for one optimiser, but an adaptation has two. "
                "Set it to 1, and data.batch_size to what fits into memory."
            )
        if str(self.config.trainer.precision) in ("16", "16-mixed"):
            raise InputError(
                "trainer.precision 16-mixed scales one loss, but an adaptation has two optimisers. "
                "Set it to bf16-mixed or 32-true."
            )
        if self.config.model.compile and self.config.adaptation.method == "ds2net":
            # It calls the network's parts, which are not compiled.
            raise InputError("model.compile does nothing for the method ds2net. Leave it out.")
        if self.config.ema.decay:
            raise InputError("ema.decay is for `ovseg train`. Leave it out.")

    def _check_kind(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run of `train`, or one with other settings of the adaptation."""
        path = self.config.ckpt_path
        if STATE not in checkpoint:
            raise InputError(
                f"{path} is not of `ovseg adapt`. Start a new training from its weights: "
                f"--model.weights {path}."
            )
        trained = checkpoint[STATE]["settings"]
        given = vars(Adaptation(**self.config.adaptation.as_dict()))
        for name, value in given.items():
            if name != MOVABLE and trained[name] != value:
                raise InputError(
                    f"{path} was trained with adaptation.{name} {trained[name]}, not {value}. "
                    "Resume with the run's own config.yaml."
                )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what the adaptation needs to the task and the data, then as `train` does."""
        settings = self.config_init["adaptation"]
        data = cast(AdaptationDataModule, self.datamodule)
        data.add_target(settings.target_root, settings.target_augmentation, settings.target_fit)
        cast(AdaptationTask, self.model).adapt(settings, data.target.image_size)
        return super().instantiate_trainer(**kwargs)

    def _verify_data(self) -> None:
        """Verify both domains; a resume must have the same images of the target."""
        super()._verify_data()
        data = cast(AdaptationDataModule, self.datamodule)
        digest = data.target_digest()
        if self.resumed is not None and self.resumed[STATE]["target_digest"] != digest:
            raise InputError(
                f"{data.target.folder} has other images than those that {self.config.ckpt_path} "
                "was adapted to. Resume with the images of that time."
            )
        cast(AdaptationTask, self.model).target_digest = digest

    def evaluate(self, run: RunFolder) -> None:
        """Score the best checkpoint on the source's test images, then on the target's.

        The target's are scored where they have masks.
        """
        super().evaluate(run)
        root = Path(self.config.adaptation.target_root)
        if not (root / "test" / "masks").is_dir():
            print(f"{root} has no test images with masks, so nothing is scored on the target.")
            return
        output = run.evaluation("target")
        try:
            report = report_evaluation(Evaluation(run.path, root=root), output, overwrite=True)
        except InputError as error:  # of masks that nothing has read before
            print(f"Nothing is scored on the target: {error}")
            return
        print(
            f"Target, {root}: its masks neither trained the network nor chose the checkpoint, "
            "which is the best on the source's valid images."
        )
        print_summary(report)
        print(f"Evaluation on the target: {output}/")
