"""`train`: LightningCLI with a run folder, our callbacks, checks before work starts, and an evaluation at the end."""

import argparse
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EarlyStopping, TQDMProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import CheckpointIO
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from ovseg.core.checkpoints import read_checkpoint
from ovseg.core.errors import InputError
from ovseg.core.runs import RunFolder, run_of_checkpoint
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.tree import SPLITS
from ovseg.evaluation.evaluate import Evaluation
from ovseg.evaluation.postprocessing_search import print_search, search_postprocessing
from ovseg.evaluation.report import print_summary, report_evaluation
from ovseg.training.callbacks import (
    BestCheckpoint,
    BreakTraining,
    EpochSeed,
    EpochSnapshots,
    HistoryPlots,
    LastCheckpoint,
    LineProgress,
)
from ovseg.training.checkpoint_io import WholeCheckpointIO
from ovseg.training.checks import check_checkpoint, check_monitors, check_schedule, share_classes
from ovseg.training.config import explain, explain_failure, explain_refusal, read_settings
from ovseg.training.ema import AveragedWeights
from ovseg.training.task import SegmentationTask


class TrainCLI(LightningCLI):
    """Every YAML key is a constructor argument and can be given on the command line."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="resume from this checkpoint"
        )
        parser.add_argument(
            "--runs_dir", type=str, default="runs", help="parent of all run folders"
        )
        parser.add_argument(
            "--postprocess",
            type=bool,
            default=False,
            help="choose flips, threshold and clean-up on valid",
        )
        parser.add_argument(
            "--ema.decay", type=float, default=0.0, help="average of the weights, see averaging.py"
        )
        parser.add_argument(
            "--evaluate_test", type=bool, default=True, help="score the best checkpoint on test"
        )
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(EpochSnapshots, "snapshots")
        # not strict: a run that max_steps cuts short has no validation to watch, and the name is checked beforehand
        defaults = {"monitor": "val_loss", "patience": 10, "strict": False}
        parser.set_defaults({f"early_stopping.{name}": value for name, value in defaults.items()})

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """Find mistakes ourselves first: jsonargparse names neither the file nor what to do."""
        self.run_folder: RunFolder | None = None  # of this process, once it is claimed
        self.settings = read_settings(args, list(parser.get_defaults(skip_validation=True).keys()))
        try:
            super().parse_arguments(parser, args)
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            raise explain(error, self.settings) from error
        seed = self.config.seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything is {seed}, expected 0..{2**32 - 1}.")

    def instantiate_classes(self) -> None:
        """Loggers and callbacks of the configuration fail here where a package of theirs is missing."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise explain(error, self.settings) if "class_path" in str(error) else error from error

    def before_instantiate_classes(self) -> None:
        """Refuse what would fail or do nothing after hours; a resume brings its weights, so it downloads nothing."""
        share_classes(self.config)
        check_monitors(self.config)
        check_schedule(self.config)
        if self.config.ckpt_path is None:
            return
        check_checkpoint(self.config, read_checkpoint(Path(self.config.ckpt_path)))
        if (self.config.model.arch_args or {}).get("encoder_weights"):
            self.config.model.arch_args["encoder_weights"] = None

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
        given = trainer["plugins"] or []
        plugins = list(given) if isinstance(given, list) else [given]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, WholeCheckpointIO()]
        if trainer["fast_dev_run"]:
            kwargs["logger"] = False
        else:
            kwargs |= self._claim_run(trainer)
        try:
            return super().instantiate_trainer(**kwargs)
        except Exception as error:  # whatever the constructors of its parts raise
            self._release_run()
            if isinstance(error, InputError):
                raise
            raise explain_refusal(error, self.settings) from error

    def _claim_run(self, trainer: Any) -> dict[str, Any]:
        """Make the run folder; the Trainer's arguments that follow from it."""
        parent = Path(self.config.runs_dir) / self._config_name()
        version = "elsewhere"  # in other processes, which take that of rank 0
        if rank_zero_only.rank == 0:
            self.run_folder = RunFolder.claim(parent)
            version = self.run_folder.path.name
        given = [] if trainer["logger"] in (None, True, False) else trainer["logger"]
        others = given if isinstance(given, list) else [given]
        loggers = [CSVLogger(parent.parent, parent.name, version), *others]
        # Lightning looks there for the checkpoints that it writes itself under SLURM
        root = trainer["default_root_dir"] or parent / version
        return {"logger": loggers, "default_root_dir": root}

    def fit(self) -> None:
        """Train; a failure before the first step leaves no folder.

        Raises:
            InputError: settings that Lightning or the network refuse only now.
            KeyboardInterrupt: Ctrl-C, which Lightning turns into the exit code of a failure.
        """
        try:
            self.trainer.fit(
                self.model, self.datamodule, ckpt_path=self.config.ckpt_path, weights_only=True
            )
        except SystemExit as error:
            self._release_unstarted()
            raise error if isinstance(error, SIGTERMException) else KeyboardInterrupt from None
        except Exception as error:
            self._release_unstarted()
            size, batch = self.config.data.image_size, self.config.data.batch_size
            raise explain_failure(
                error, self.settings, bool(self.trainer.global_step), size, batch
            ) from None

    def _release_unstarted(self) -> None:
        """Later its configuration, logs and curves tell what went wrong."""
        if self.trainer.global_step == 0:
            self._release_run()

    def _release_run(self) -> None:
        if self.run_folder is not None:
            self.run_folder.release()

    def _config_name(self) -> str:
        """The name of the last --config file without its suffix; for a run's own config.yaml, the run's name."""
        if not self.config.config:
            return "run"
        path = Path(str(self.config.config[-1]))
        run = RunFolder(path.parent)
        return run.name if path.name == run.config.name else path.stem


def build_cli(kind: type[TrainCLI], arguments: list[str]) -> TrainCLI:
    """The command line of `train`, parsed and checked."""
    # Otherwise a class_path inside arch_args, optimizer_args or scheduler_args imports and calls what it names.
    set_parsing_settings(instantiate_subclass_spec_in_any=False)
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

    With `postprocess: true` its post-processing (see `ovseg.inference.postprocessing`) is chosen on the validation split before that; where none can
    be chosen, the scores are those of the plain one.

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
        trainer.checkpoint_callback.resumed_run = run_of_checkpoint(Path(cli.config.ckpt_path))
    _announce(cli.model, cli.datamodule)
    cli.fit()
    log_dir = trainer.log_dir  # asks all processes
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return 0
    run = RunFolder(Path(log_dir))
    if not run.has_checkpoint:
        print(f"No epoch came to its end, so nothing was kept but the configuration in {run.path}.")
        return 0
    last = float(trainer.callback_metrics.get("val_loss", 0.0))
    if not math.isfinite(last):
        raise InputError(
            f"Training diverged: val_loss is {last} after epoch {trainer.current_epoch}. Lower "
            "model.optimizer_args.lr or clip gradients (trainer.gradient_clip_val). Nothing was evaluated; the curves "
            f"are in {run.path}."
        )
    if cli.config.postprocess:
        _postprocess(run)
    if cli.config.evaluate_test:
        _evaluate_best(run)
    print(f"Run folder: {run.path}")
    print(f"Curves: {run.curves('losses', '.png')}, {run.curves('metrics', '.png')}")
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


def _postprocess(run: RunFolder) -> None:
    """Choose the post-processing; where none can be chosen say why, so that a finished training still gets its scores."""
    try:
        print_search(search_postprocessing(run.path))
    except InputError as error:
        print(f"No post-processing was chosen, so the plain one holds: {error}")


def _evaluate_best(run: RunFolder) -> None:
    output = run.evaluation("test")
    print_summary(report_evaluation(Evaluation(run.path), output))
    print(f"Snapshots: {run.snapshots}/")
    print(f"Evaluation: {output}/")
