"""`train`: LightningCLI with a run folder, our callbacks, checks before work starts, and an evaluation at the end."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EarlyStopping, TQDMProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ovseg.callbacks import (
    BestCheckpoint,
    BreakTraining,
    EpochSeed,
    EpochSnapshots,
    HistoryPlots,
    LastCheckpoint,
    LineProgress,
)
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.errors import InputError
from ovseg.evaluation import Evaluation
from ovseg.inference import read_checkpoint
from ovseg.report import evaluation_dir, print_summary, report_evaluation
from ovseg.task import SegmentationTask


class TrainCLI(LightningCLI):
    """Every YAML key is a constructor argument and can be given on the command line."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="resume from this checkpoint")
        parser.add_argument("--runs_dir", type=str, default="runs", help="parent of all run folders")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(EpochSnapshots, "snapshots")
        parser.set_defaults({"early_stopping.monitor": "val_loss", "early_stopping.patience": 10})

    def before_instantiate_classes(self) -> None:
        """A resume brings its weights: nothing is downloaded for it."""
        self._check_patience()
        if self.config.ckpt_path is None:
            return
        self._check_checkpoint(read_checkpoint(Path(self.config.ckpt_path))["hyper_parameters"])
        if (self.config.model.arch_args or {}).get("encoder_weights"):
            self.config.model.arch_args["encoder_weights"] = None

    def _check_patience(self) -> None:
        """Stopping before the rate can fall makes the schedule a dead option."""
        wanted = (self.config.model.scheduler_args or {}).get("patience", 0)
        if self.config.model.scheduler and self.config.early_stopping.patience <= wanted:
            raise InputError(
                f"early_stopping.patience {self.config.early_stopping.patience} ends training before the schedule's "
                f"patience {wanted} can lower the rate. Raise early_stopping.patience above {wanted}."
            )

    def _check_checkpoint(self, saved: dict[str, Any]) -> None:
        """Resuming needs the network, and the optimiser, of the checkpoint."""
        for name in ("arch", "arch_args", "optimizer"):
            here, there = self.config.model[name], saved[name]
            if isinstance(here, dict | Namespace):
                here, there = ({**dict(value or {}), "encoder_weights": None} for value in (here, there))
            if here != there:
                raise InputError(
                    f"{self.config.ckpt_path} was trained with model.{name} {there}, but the configuration has {here}. "
                    "Resume with the run's own config.yaml."
                )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Verify the data, then claim the run folder, then build the trainer."""
        trainer = self.config_init["trainer"]
        if rank_zero_only.rank == 0:
            self.datamodule.prepare_data()
        if trainer["fast_dev_run"]:
            return super().instantiate_trainer(logger=False, **kwargs)
        folder = Path(self.config.runs_dir) / self._config_name()
        version = claim_version(folder) if rank_zero_only.rank == 0 else "elsewhere"  # rank 0's is broadcast
        given = [] if trainer["logger"] in (None, True, False) else trainer["logger"]
        loggers = [CSVLogger(folder.parent, folder.name, version), *(given if isinstance(given, list) else [given])]
        try:
            return super().instantiate_trainer(logger=loggers, **kwargs)
        except MisconfigurationException:
            with suppress(OSError):  # give the claimed folder back, and parents that nothing else is in
                os.removedirs(folder / version)
            raise

    def _config_name(self) -> str:
        """The name of the last --config file without its suffix."""
        return Path(str(self.config.config[-1])).stem if self.config.config else "run"


def claim_version(folder: Path) -> str:
    """Make the next free `version_<n>` folder; two runs that start at once never share one.

    Raises:
        InputError: the folder can't be written.
    """
    numbers = [int(path.name[8:]) for path in folder.glob("version_*") if path.name[8:].isdigit()]
    number = max(numbers, default=-1) + 1
    while True:
        try:
            (folder / f"version_{number}").mkdir(parents=True)
            return f"version_{number}"
        except FileExistsError:
            if not folder.is_dir():
                raise InputError(f"{folder} is not a folder. Choose another --runs_dir.") from None
            number += 1
        except OSError as error:
            raise InputError(f"Cannot write {folder}: {error.strerror}. Choose another --runs_dir.") from None


def train_from_command_line(arguments: list[str]) -> int:
    """Train as the configuration says, then evaluate the best checkpoint on the test split.

    Args:
        arguments: of the command line, without the command.

    Returns:
        Exit code.

    Raises:
        InputError: a mistake in the configuration or the data, before training starts.
    """
    sys.argv[1:] = arguments  # LightningCLI warns when it is given arguments beside the process' own
    cli = TrainCLI(
        SegmentationTask,
        OvarianTumorDataModule,
        run=False,
        seed_everything_default=42,
        parser_kwargs={"exit_on_error": False},
        trainer_defaults={
            "log_every_n_steps": 1,
            "callbacks": [LastCheckpoint(), HistoryPlots(), BreakTraining(), _progress_bar()],
        },
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,  # it saves an "_instantiator" that only LightningCLI understands
    )
    trainer = cli.trainer
    trainer.callbacks.insert(0, EpochSeed(cli.datamodule.hparams.seed))
    trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True)
    run = trainer.log_dir  # asks all processes
    if trainer.is_global_zero and not trainer.fast_dev_run:
        _evaluate_best(Path(run))
    return 0


def _progress_bar() -> LineProgress | TQDMProgressBar:
    """A bar on a terminal, lines in a log file."""
    return TQDMProgressBar(refresh_rate=1) if sys.stderr.isatty() else LineProgress()


def _evaluate_best(run: Path) -> None:
    output = evaluation_dir(run, "test")
    print_summary(report_evaluation(Evaluation(run), output))
    print(f"Run folder: {run}\nCurves: {run}/train_losses.png, {run}/train_metrics.png")
    print(f"Snapshots: {run}/epoch_change_infer/\nEvaluation: {output}/")
