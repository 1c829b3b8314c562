"""`train`: LightningCLI with a run folder, our callbacks, checks before work starts, and an evaluation at the end."""

import json
import math
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EarlyStopping, TQDMProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ovseg.averaging import AveragedWeights, decay_of
from ovseg.callbacks import (
    LOGGED_OF_CATEGORIES,
    BestCheckpoint,
    BreakTraining,
    EpochSeed,
    EpochSnapshots,
    HistoryPlots,
    LastCheckpoint,
    LineProgress,
    best_mode,
)
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.tree import SPLITS
from ovseg.errors import InputError, fill_defaults
from ovseg.evaluation import Evaluation
from ovseg.inference import read_checkpoint
from ovseg.models import ARCHITECTURES
from ovseg.report import evaluation_dir, print_summary, report_evaluation
from ovseg.schedules import SCHEDULERS
from ovseg.task import SegmentationTask
from ovseg.tuning import print_tuning, tune


class TrainCLI(LightningCLI):
    """Every YAML key is a constructor argument and can be given on the command line."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="resume from this checkpoint")
        parser.add_argument("--runs_dir", type=str, default="runs", help="parent of all run folders")
        parser.add_argument("--tune", type=bool, default=False, help="choose flips, threshold and clean-up on valid")
        parser.add_argument("--ema.decay", type=float, default=0.0, help="average of the weights, see averaging.py")
        parser.add_argument("--evaluate_test", type=bool, default=True, help="score the best checkpoint on test")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(EpochSnapshots, "snapshots")
        # not strict: a run that max_steps cuts short has no validation to watch, and the name is checked beforehand
        defaults = {"monitor": "val_loss", "patience": 10, "strict": False}
        parser.set_defaults({f"early_stopping.{name}": value for name, value in defaults.items()})

    def before_instantiate_classes(self) -> None:
        """Refuse what would fail or do nothing after hours; a resume brings its weights, so it downloads nothing."""
        self._share_classes()
        self._check_monitors()
        self._check_patience()
        if self.config.ckpt_path is None:
            return
        self._check_checkpoint(read_checkpoint(Path(self.config.ckpt_path)))
        if (self.config.model.arch_args or {}).get("encoder_weights"):
            self.config.model.arch_args["encoder_weights"] = None

    def _share_classes(self) -> None:
        """`data.classes` is said once: the network gets as many, and the run's config.yaml shows both."""
        classes, arch_args = self.config.data.classes, self.config.model.arch_args or {}
        given = arch_args.get("classes", classes)
        if given != classes:
            raise InputError(
                f"model.arch_args.classes is {given}, but data.classes is {classes}. Set data.classes alone: "
                "the network follows it."
            )
        if classes > 1:
            self.config.model.arch_args = {**arch_args, "classes": classes}

    def _check_monitors(self) -> None:
        """Monitored names must be logged, and validation must run at every epoch's end."""
        config = self.config
        config.early_stopping.mode = best_mode(config.early_stopping.monitor)
        best_mode(config.best_checkpoint.monitor)
        best_mode(config.model.monitor)
        for name in ("early_stopping", "best_checkpoint", "model"):
            if config[name].monitor in LOGGED_OF_CATEGORIES and config.data.classes == 1:
                raise InputError(
                    f"{name}.monitor is {config[name].monitor}, which is logged only where data.classes is above 1. "
                    "Set it to val_dice."
                )
        for name in ("max_epochs", "limit_train_batches"):
            if config.trainer[name] == 0:
                raise InputError(f"trainer.{name} is 0, so nothing would be trained. Raise it.")
        if config.trainer.limit_val_batches == 0 or (config.trainer.check_val_every_n_epoch or 0) != 1:
            raise InputError(
                "Best checkpoint, early stopping and schedule need a validation every epoch: leave "
                "trainer.check_val_every_n_epoch at 1 and trainer.limit_val_batches above 0."
            )

    def _check_patience(self) -> None:
        """Stopping before the rate can fall makes the schedule a dead option, which configurations of others have."""
        scheduler = self.config.model.scheduler
        if scheduler not in SCHEDULERS:
            return  # none, or the task's own error lists the choices
        wanted = fill_defaults(SCHEDULERS[scheduler], self.config.model.scheduler_args).get("patience")
        later = scheduler == "plateau"  # torch's waits one epoch longer than Keras'
        if isinstance(wanted, int) and self.config.early_stopping.patience <= wanted + later:
            rank_zero_info(
                f"early_stopping.patience {self.config.early_stopping.patience} ends training before the schedule's "
                f"patience {wanted} can lower the rate. Raise early_stopping.patience above {wanted + later} if it "
                "should."
            )

    def _check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A resume goes on with the network, optimiser and schedule of the checkpoint, at the end of an epoch."""
        path, here = self.config.ckpt_path, self.config.model
        there = fill_defaults(SegmentationTask, checkpoint["hyper_parameters"])
        names = ("arch", "arch_args", "optimizer", "optimizer_args", "scheduler", "scheduler_args", "loss")
        for name in (*names, "encoder_lr_factor", "freeze_encoder_epochs"):
            ours, theirs = here[name], there[name]
            if name == "arch_args" and here["arch"] in ARCHITECTURES:
                ours, theirs = (fill_defaults(ARCHITECTURES[here["arch"]], value) for value in (ours, theirs))
                ours["encoder_weights"] = theirs["encoder_weights"] = None
            if (ours or {}) != (theirs or {}):
                raise InputError(
                    f"{path} was trained with model.{name} {there[name]}, but the configuration has {here[name]}, "
                    "which a resume would ignore. Resume with the run's own config.yaml."
                )
        fold = checkpoint["datamodule_hyper_parameters"].get("fold")
        if fold != self.config.data.fold:
            raise InputError(
                f"{path} was trained with data.fold {fold}, but the configuration has {self.config.data.fold}, whose "
                "validation images it may have seen. Resume with the run's own config.yaml."
            )
        decayed = (there["optimizer_args"] or {}).get("weight_decay", 0.01 if there["optimizer"] == "adamw" else 0.0)
        if decayed and "encoder_lr_factor" not in checkpoint["hyper_parameters"]:
            raise InputError(
                f"{path} was trained by an earlier version, whose weight decay took norms and biases along. It can be "
                "evaluated, but not resumed: train it anew."
            )
        if decay_of(checkpoint) != self.config.ema.decay:
            raise InputError(
                f"{path} was trained with ema.decay {decay_of(checkpoint)}, but the configuration has "
                f"{self.config.ema.decay}. Resume with the run's own config.yaml."
            )
        done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        wanted = self.config.trainer.max_epochs
        if wanted is not None and 0 < wanted <= done:
            raise InputError(f"{path} has done {done} epochs of trainer.max_epochs {wanted}. Raise it to go on.")
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if progress["current"]["ready"] and not progress["is_last_batch"]:
            raise InputError(f"{path} was stopped inside an epoch, which cannot be finished. Resume from last.ckpt.")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Verify the data, then claim the run folder, then build the trainer."""
        trainer = self.config_init["trainer"]
        if rank_zero_only.rank == 0:
            self.datamodule.prepare_data()
        kwargs["callbacks"] = list(trainer["callbacks"] or [])
        if trainer["enable_progress_bar"] is not False:
            kwargs["callbacks"].append(_progress_bar())
        if self.config.ema.decay:
            kwargs["callbacks"].append(AveragedWeights(self.config.ema.decay))
        if trainer["fast_dev_run"]:
            return super().instantiate_trainer(logger=False, **kwargs)
        folder = Path(self.config.runs_dir) / self._config_name()
        version = claim_version(folder) if rank_zero_only.rank == 0 else "elsewhere"  # rank 0's is broadcast
        given = [] if trainer["logger"] in (None, True, False) else trainer["logger"]
        loggers = [CSVLogger(folder.parent, folder.name, version), *(given if isinstance(given, list) else [given])]
        root = trainer["default_root_dir"] or folder / version  # where Lightning looks for SLURM's own checkpoints
        try:
            return super().instantiate_trainer(logger=loggers, default_root_dir=root, **kwargs)
        except (MisconfigurationException, ValueError, ImportError) as error:
            with suppress(OSError):  # give the claimed folder back, and parents that nothing else is in
                os.removedirs(folder / version)
            raise InputError(f"Lightning's Trainer refuses its settings: {error}") from error

    def _config_name(self) -> str:
        """The name of the last --config file without its suffix; for a run's own config.yaml, the run's name."""
        if not self.config.config:
            return "run"
        path = Path(str(self.config.config[-1]))
        if path.name != "config.yaml":
            return path.stem
        folder = path.absolute().parent
        return folder.parent.name if folder.name.startswith("version_") else folder.name


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


def build_cli(kind: type[TrainCLI], arguments: list[str]) -> TrainCLI:
    """The command line of `train`, parsed and checked."""
    # Lightning warns of arguments beside the process' own, which a several-process launch repeats as they are.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    return kind(
        SegmentationTask,
        OvarianTumorDataModule,
        args=arguments,
        run=False,
        seed_everything_default=42,
        parser_kwargs={"exit_on_error": False},
        trainer_defaults={
            "log_every_n_steps": 1,
            "enable_model_summary": False,  # `_announce` says it in a line
            "callbacks": [LastCheckpoint(), HistoryPlots(), BreakTraining()],
        },
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,  # it saves an "_instantiator" that only LightningCLI understands
    )


class ConfigurationCLI(TrainCLI):
    """Checks a configuration as `train` does, network and optimiser too, but trains and writes nothing."""

    def instantiate_trainer(self, **kwargs: Any) -> None:
        """None is needed."""


def read_configuration(arguments: list[str]) -> dict[str, Any]:
    """The whole configuration that `train` would take from these arguments, with all defaults, as plain values.

    Raises:
        InputError: a mistake in the configuration.
    """
    cli = build_cli(ConfigurationCLI, arguments)
    return json.loads(cli.parser.dump(cli.config, format="json", skip_none=False))


def train_from_command_line(arguments: list[str]) -> int:
    """Train as the configuration says, then, unless `evaluate_test` is false, score the best checkpoint on test.

    With `tune: true` its decision (see `ovseg.decision`) is chosen on the validation split before that.

    Args:
        arguments: of the command line, without the command.

    Returns:
        Exit code.

    Raises:
        InputError: a mistake in the configuration or the data, before training starts.
    """
    cli = build_cli(TrainCLI, arguments)
    trainer = cli.trainer
    trainer.callbacks.insert(0, EpochSeed(cli.datamodule.hparams.seed))
    if cli.config.ckpt_path:
        trainer.checkpoint_callback.resume_dir = Path(cli.config.ckpt_path).parent
    _announce(cli.model, cli.datamodule)
    trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True)
    run = trainer.log_dir  # asks all processes
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return 0
    if not any(Path(run, "checkpoints").glob("*.ckpt")):
        print(f"No epoch came to its end, so nothing was kept but the configuration in {run}.")
        return 0
    last = float(trainer.callback_metrics.get("val_loss", 0.0))
    if not math.isfinite(last):
        raise InputError(
            f"Training diverged: val_loss is {last} after epoch {trainer.current_epoch}. Lower "
            "model.optimizer_args.lr or clip gradients (trainer.gradient_clip_val). Nothing was evaluated; the curves "
            f"are in {run}."
        )
    if cli.config.tune:
        print_tuning(tune(Path(run)))
    if cli.config.evaluate_test:
        _evaluate_best(Path(run))
    print(f"Run folder: {run}\nCurves: {run}/train_losses.png, {run}/train_metrics.png")
    return 0


def _announce(task: SegmentationTask, data: OvarianTumorDataModule) -> None:
    """What is trained on what."""
    count = sum(parameter.numel() for parameter in task.parameters())
    images = ", ".join(f"{len(data.pairs(split))} {split}" for split in SPLITS)
    images += "" if data.hparams.fold is None else f" (fold {data.hparams.fold} held out)"
    rank_zero_info(
        f"{task.hparams.arch}: {count:,} parameters. {data.root}: {images} images of {data.hparams.image_size}."
    )


def _progress_bar() -> LineProgress | TQDMProgressBar:
    """A bar on a terminal, lines in a log file."""
    return TQDMProgressBar(refresh_rate=1) if sys.stderr.isatty() else LineProgress()


def _evaluate_best(run: Path) -> None:
    output = evaluation_dir(run, "test")
    print_summary(report_evaluation(Evaluation(run), output))
    print(f"Snapshots: {run}/epoch_change_infer/\nEvaluation: {output}/")
