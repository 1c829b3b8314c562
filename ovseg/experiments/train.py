"""`ovseg train`: LightningCLI with checks before training, a run folder, and scores at the end."""

import argparse
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any, cast

from jsonargparse import Namespace, set_parsing_settings
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping, TQDMProgressBar
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import CheckpointIO
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from ovseg.core.checkpoints import read_checkpoint
from ovseg.core.errors import InputError
from ovseg.core.runs import RunFolder
from ovseg.core.trust import CALLERS, PACKAGES, is_trusted
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.tree import SPLITS
from ovseg.evaluation.evaluate import Evaluation
from ovseg.evaluation.postprocessing_search import print_search, search_postprocessing
from ovseg.evaluation.report import print_summary, report_evaluation
from ovseg.training.callbacks import (
    EARLY_STOPPING_DEFAULTS,
    BestCheckpoint,
    BreakTraining,
    EpochSeed,
    EpochSnapshots,
    HistoryPlots,
    LastCheckpoint,
    LineProgress,
)
from ovseg.training.checkpoint_io import WholeCheckpointIO
from ovseg.training.checks import (
    check_monitors,
    check_own_network,
    check_schedule,
    share_classes,
)
from ovseg.training.ema import AveragedWeights
from ovseg.training.resume import check_checkpoint
from ovseg.training.settings import (
    Setting,
    check_values,
    explain,
    explain_failure,
    explain_refusal,
    read_settings,
    was_raised_by,
)
from ovseg.training.task import SegmentationTask

# Sections of a configuration, and the classes whose arguments are their keys.
SECTIONS = {"model": SegmentationTask, "data": OvarianTumorDataModule, "trainer": Trainer}


class TrainCLI(LightningCLI):
    """LightningCLI, where every YAML key is a constructor argument and a command-line option.

    Attributes:
        settings: what the configuration files and the command line set, for error messages.
        run_folder: the run folder that this process made; None before, and in other processes.
        resumed_steps: how many steps the resumed checkpoint has done; None without one.
    """

    settings: list[Setting]
    run_folder: RunFolder | None = None
    resumed_steps: int | None = None

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
            "--ema.decay",
            type=float,
            default=0.0,
            help="decay of a moving average of the weights, such as 0.995; 0 for none",
        )
        parser.add_argument(
            "--evaluate_test", type=bool, default=True, help="score the best checkpoint on test"
        )
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(EpochSnapshots, "snapshots")
        for name, value in EARLY_STOPPING_DEFAULTS.items():
            parser.set_defaults({f"early_stopping.{name}": value})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Look for mistakes before jsonargparse does, which names neither the file nor a remedy."""
        known_keys = list(parser.get_defaults(skip_validation=True).keys())
        arguments = cast(list[str], args)  # `build_cli` passes no other kind
        self.settings = read_settings(arguments, known_keys)
        check_values(self.settings, SECTIONS)
        try:
            super().parse_arguments(parser, args)
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            raise explain(error, parser, self.settings, SECTIONS) from error

        seed = self.config.seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything is {seed}, expected 0..{2**32 - 1}.")

    def before_instantiate_classes(self) -> None:
        """Refuse settings that would fail or do nothing after hours of training."""
        share_classes(self.config)
        check_monitors(self.config)
        check_schedule(self.config)
        if self.config.ckpt_path is None:
            return

        checkpoint = read_checkpoint(Path(self.config.ckpt_path))
        check_checkpoint(self.config, checkpoint)
        self.resumed_steps = checkpoint["global_step"]
        arch_args = self.config.model.arch_args or {}
        if arch_args.get("encoder_weights"):
            arch_args["encoder_weights"] = None  # the checkpoint has them: nothing to download

    def instantiate_classes(self) -> None:
        """Build everything; a logger or callback may need a package that is not installed."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if was_raised_by(error, "jsonargparse"):
                raise explain(error, self.parser, self.settings, SECTIONS) from error
            raise

    def _check_own_network(self) -> None:
        arch = self.config.model.arch
        if "." in arch:
            data = self.config.data
            check_own_network(arch, self.model.network, data.image_size, data.classes)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Verify the data, then make the run folder, then build the trainer."""
        settings = self.config_init["trainer"]
        self._check_own_network()
        rank_zero_only(self.datamodule.prepare_data)()

        if self.config.ckpt_path:
            resumed_run = RunFolder.of_checkpoint(Path(self.config.ckpt_path))
            self.config_init["best_checkpoint"].resumed_run = resumed_run
        kwargs["callbacks"] = self._list_callbacks(settings)
        plugins = _as_list(settings["plugins"])
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, WholeCheckpointIO()]
        if settings["fast_dev_run"]:
            kwargs["logger"] = False
        else:
            kwargs |= self._claim_run(settings)

        try:
            return super().instantiate_trainer(**kwargs)
        except InputError:
            self._release_run()
            raise
        except Exception as error:  # whatever the constructors of the Trainer's parts raise
            self._release_run()
            raise explain_refusal(error, self.settings) from error

    def _list_callbacks(self, settings: Namespace) -> list[Callback]:
        """The configuration's callbacks, and what depends on other parts of the configuration."""
        # The seed comes first: other callbacks may draw random numbers too.
        callbacks = [EpochSeed(self.config.data.seed), *_as_list(settings["callbacks"])]
        if settings["enable_progress_bar"] is not False:
            callbacks.append(_build_progress_bar())
        if self.config.ema.decay:
            callbacks.append(AveragedWeights(self.config.ema.decay))
        return callbacks

    def _claim_run(self, settings: Namespace) -> dict[str, Any]:
        """Make the run folder and return the Trainer's arguments that follow from it."""
        parent = Path(self.config.runs_dir) / self._config_name()
        self.run_folder = rank_zero_only(RunFolder.claim)(parent)
        version = "elsewhere"  # other processes write nothing
        if self.run_folder is not None:
            version = self.run_folder.path.name

        loggers = [CSVLogger(parent.parent, parent.name, version)]
        if not isinstance(settings["logger"], bool):
            loggers += _as_list(settings["logger"])
        # Under SLURM Lightning writes and looks for checkpoints of its own there.
        root = settings["default_root_dir"] or parent / version
        return {"logger": loggers, "default_root_dir": root}

    def _config_name(self) -> str:
        """The name of the last --config file without suffix.

        It is the run's name if that file is the `config.yaml` of a run, and "run" without a file.
        """
        if not self.config.config:
            return "run"
        path = Path(str(self.config.config[-1]))
        run = RunFolder(path.parent)
        if path.name == run.config.name:
            return run.config_name
        return path.stem

    def fit(self) -> None:
        """Train; a failure before the first step leaves no run folder.

        Raises:
            InputError: Lightning or the network refuse the settings.
            KeyboardInterrupt: Ctrl-C, which Lightning turns into the exit code of a failure.
            SIGTERMException: the process was asked to end.
        """
        try:
            self.trainer.fit(
                self.model, self.datamodule, ckpt_path=self.config.ckpt_path, weights_only=True
            )
        except SIGTERMException:
            self._release_unstarted_run()
            raise
        except SystemExit:
            self._release_unstarted_run()
            raise KeyboardInterrupt from None
        except Exception as error:
            self._release_unstarted_run()
            trained = self.trainer.global_step > 0
            data = self.config.data
            explained = explain_failure(
                error, self.settings, trained, data.image_size, data.batch_size
            )
            steps = self.resumed_steps
            if explained is error and steps is not None and self.trainer.global_step <= steps:
                self._release_run()
                raise self._explain_failed_resume(error) from error
            raise explained from None

    def _explain_failed_resume(self, error: Exception) -> InputError:
        """What is raised for an error of any kind before the first step of a resumed training.

        Lightning restores the state of each part without a check of what it holds.
        """
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return InputError(
            f"{self.config.ckpt_path} can't be resumed ({reason[:300]}). It is damaged, or was "
            "written by another version. Resume from another checkpoint, or train anew."
        )

    def _release_unstarted_run(self) -> None:
        """Remove the run folder, unless a step was done: then its logs help to find the error."""
        if self.trainer.global_step == 0:
            self._release_run()

    def _release_run(self) -> None:
        if self.run_folder is not None:
            self.run_folder.remove_if_unused()


class ConfigurationCLI(TrainCLI):
    """Checks a configuration as `train` does and builds the network, but writes nothing."""

    def instantiate_trainer(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Nothing is trained, so no trainer is built."""


def build_cli(kind: type[TrainCLI], arguments: list[str]) -> TrainCLI:
    """Parse and check a command line of `train`.

    Every `--config` of `train`, `cross_validate` and `sweep` is read from `arguments` here.
    """
    _restrict_imports()
    # Lightning warns if sys.argv holds arguments too. They stay there: the processes of a
    # distributed training are started with them.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    return kind(
        SegmentationTask,
        OvarianTumorDataModule,
        args=arguments,
        run=False,
        seed_everything_default=42,
        parser_kwargs={
            "exit_on_error": False,
            "prog": "ovseg train",
            "description": "Train a network. --config takes a YAML file or the name of a shipped "
            "configuration; every option below is a key of it.",
        },
        trainer_defaults={
            "log_every_n_steps": 1,
            "enable_model_summary": False,  # `_announce` has it in a line
            "callbacks": [LastCheckpoint(), HistoryPlots(), BreakTraining()],
        },
        auto_configure_optimizers=False,
        save_config_kwargs={"config_filename": RunFolder(Path()).config.name},
        # Else checkpoints hold an "_instantiator" that only LightningCLI understands.
        load_from_checkpoint_support=False,
    )


def _restrict_imports() -> None:
    """Let jsonargparse import only what a configuration may name, see `ovseg.core.trust`.

    In a process that has once read a configuration which was not trusted, that stays so.
    """
    # Otherwise a class_path inside arch_args, optimizer_args or scheduler_args imports and calls
    # what it names.
    set_parsing_settings(instantiate_subclass_spec_in_any=False)
    if is_trusted():
        set_parsing_settings(import_path_denylist=[])  # jsonargparse's own list is enforced
        return
    set_parsing_settings(import_path_denylist=["*", *CALLERS], import_path_allowlist=list(PACKAGES))


def read_configuration(arguments: list[str]) -> dict[str, Any]:
    """The whole configuration that `train` would use, with all defaults, as plain values.

    Args:
        arguments: of a command line of `train`.

    Raises:
        InputError: a mistake in the configuration.
    """
    cli = build_cli(ConfigurationCLI, arguments)
    return json.loads(cli.parser.dump(cli.config, format="json", skip_none=False))


def train_from_command_line(arguments: list[str]) -> int:
    """Train, then score the best checkpoint on test, unless `evaluate_test` is false.

    With `postprocess: true` the post-processing (see `ovseg.inference.postprocessing`) is chosen on
    the validation split before that. If none can be chosen, the run is scored without it.

    Args:
        arguments: of the command line, without the command.

    Returns:
        Exit code.

    Raises:
        InputError: a mistake in the configuration or the data, or training diverged.
    """
    cli = build_cli(TrainCLI, arguments)
    _announce(cli.model, cli.datamodule)
    cli.fit()

    run = cli.run_folder  # None in other processes, and with fast_dev_run, which writes nothing
    if run is None or not cli.trainer.is_global_zero:
        return 0
    if not run.has_checkpoint:
        print(f"No epoch was completed, so there is no checkpoint in {run.path}.")
        return 0

    _check_finite(cli.trainer, run)
    if cli.config.postprocess:
        _choose_postprocessing(run)
    if cli.config.evaluate_test:
        _evaluate_best(run)
    print(f"Run folder: {run.path}")
    print(f"Curves: {run.curves('losses', '.png')}, {run.curves('metrics', '.png')}")
    return 0


def _as_list(value: Any) -> list[Any]:
    """The Trainer's arguments that take nothing, one object or a list of them, as a new list."""
    if value is None:
        return []
    if isinstance(value, list):
        return list(value)
    return [value]


def _build_progress_bar() -> LineProgress | TQDMProgressBar:
    """A bar on a terminal, lines in a log file."""
    if sys.stderr.isatty():
        return TQDMProgressBar(refresh_rate=1)
    return LineProgress()


def _announce(task: SegmentationTask, data: OvarianTumorDataModule) -> None:
    """Log the network's size and the dataset's in a line."""
    parameters = sum(parameter.numel() for parameter in task.parameters())
    counts = ", ".join(f"{len(data.pairs(split))} {split}" for split in SPLITS)
    if data.hparams["fold"] is not None:
        counts += f" (fold {data.hparams['fold']} held out)"
    rank_zero_info(
        f"{task.hparams['arch']}: {parameters:,} parameters. "
        f"{data.root}: {counts} images of {data.hparams['image_size']}."
    )


def _check_finite(trainer: Trainer, run: RunFolder) -> None:
    """Raise InputError if training diverged, so nothing is evaluated."""
    loss = float(trainer.callback_metrics.get("val_loss", 0.0))
    if not math.isfinite(loss):
        raise InputError(
            f"Training diverged: val_loss is {loss} after epoch {trainer.current_epoch}. Lower "
            "model.optimizer_args.lr or clip gradients (trainer.gradient_clip_val). Nothing was "
            f"evaluated; the curves are in {run.path}."
        )


def _choose_postprocessing(run: RunFolder) -> None:
    """Choose the post-processing; if that fails print why, so that training still gets scores."""
    try:
        print_search(search_postprocessing(run.path))
    except InputError as error:
        print(f"No post-processing was chosen, so the run is used without it: {error}")


def _evaluate_best(run: RunFolder) -> None:
    output = run.evaluation("test")
    print_summary(report_evaluation(Evaluation(run.path), output))
    print(f"Snapshots: {run.snapshots}/")
    print(f"Evaluation: {output}/")
