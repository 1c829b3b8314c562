"""`ovseg train`: LightningCLI with checks before training, a run folder, and scores at the end."""

import argparse
import json
import math
import os
import shlex
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, cast

from jsonargparse import Namespace, set_parsing_settings
from pytorch_lightning import Callback, Trainer, callbacks
from pytorch_lightning.callbacks import ProgressBar, TQDMProgressBar
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins import CheckpointIO
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from ovseg.adaptation.task import STATE
from ovseg.core.checkpoints import epochs_done, read_checkpoint
from ovseg.core.configs import resolve_configs, short_name, shorten_configs
from ovseg.core.errors import InputError
from ovseg.core.long_work import has_caller
from ovseg.core.runs import LAST, RunFolder
from ovseg.core.trust import CALLERS, PACKAGES, is_trusted
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.evaluation.evaluate import Evaluation
from ovseg.evaluation.postprocessing_search import apply_choice, read_choice
from ovseg.evaluation.report import print_summary, report_evaluation
from ovseg.experiments.run_record import RunRecord, find_unfinished
from ovseg.training.callbacks import (
    EARLY_STOPPING_DEFAULTS,
    BestCheckpoint,
    BreakTraining,
    Curves,
    EndIfDiverged,
    EpochSeed,
    EpochSnapshots,
    ExplainedEarlyStopping,
    HistoryPlots,
    LastCheckpoint,
    LineProgress,
    MetricsLog,
    Shown,
)
from ovseg.training.checkpoint_io import WholeCheckpointIO
from ovseg.training.checks import (
    check_callbacks,
    check_held_out,
    check_lesions,
    check_monitors,
    check_own_network,
    check_schedule,
    check_unused,
    check_valid_is_trained_on,
    share_classes,
)
from ovseg.training.ema import AveragedWeights
from ovseg.training.resume import check_checkpoint, check_data
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
        command: its name.
        sections: sections of a configuration, and the classes whose arguments are their keys.
        arguments: of the command line.
        settings: what the configuration files and the command line set, for error messages.
        run_folder: the run folder that this process made; None before, and in other processes.
        resumed: the checkpoint to resume from, until the trainer is built.
        resumed_steps: how many steps the resumed checkpoint has done; None without one.
    """

    command = "train"
    sections: ClassVar[dict[str, type]] = SECTIONS
    arguments: list[str]
    settings: list[Setting]
    run_folder: RunFolder | None = None
    resumed: dict[str, Any] | None = None
    resumed_steps: int | None = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="resume from this checkpoint"
        )
        parser.add_argument(
            "--resume",
            action="store_true",
            help="resume the newest unfinished run of this configuration in runs_dir, if any",
        )
        parser.add_argument(
            "--runs_dir", type=str, default="runs", help="parent of all run folders"
        )
        parser.add_argument(
            "--postprocess",
            type=bool | dict[str, Any] | str,  # a string is refused by `read_choice`, in its words
            default=False,
            help="true: choose flips, threshold and clean-up on valid; or the post-processing "
            "itself, such as {flips: [horizontal]}",
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
        parser.add_lightning_class_args(ExplainedEarlyStopping, "early_stopping")
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(EpochSnapshots, "snapshots")
        for name, value in EARLY_STOPPING_DEFAULTS.items():
            parser.set_defaults({f"early_stopping.{name}": value})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Look for mistakes before jsonargparse does, which names neither the file nor a remedy."""
        known_keys = list(parser.get_defaults(skip_validation=True).keys())
        self.arguments = cast(list[str], args)  # `build_cli` passes no other kind
        self.settings = read_settings(self.arguments, known_keys)
        check_values(self.settings, self.sections)
        try:
            super().parse_arguments(parser, args)
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            raise explain(error, parser, self.settings, self.sections) from error
        _make_plain(self.config)

        seed = self.config.seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything is {seed}, expected 0..{2**32 - 1}.")

    def before_instantiate_classes(self) -> None:
        """Refuse settings that would fail or do nothing after hours of training."""
        if self.config.pop("resume"):  # not for the run's config.yaml: it has ckpt_path
            self._find_unfinished()
        share_classes(self.config)
        check_unused(self.config)
        check_monitors(self.config)
        read_choice(self.config.postprocess, self.config.data.classes)
        check_valid_is_trained_on(self.config)
        check_schedule(self.config)
        if self.config.ckpt_path is None:
            return

        self.resumed = read_checkpoint(Path(self.config.ckpt_path))
        self._check_kind(self.resumed)
        check_checkpoint(self.config, self.resumed)
        self.resumed_steps = self.resumed["global_step"]
        if self.config.model.weights is not None:
            rank_zero_info(
                f"model.weights {self.config.model.weights} is not read again: the resume has the "
                f"weights of {self.config.ckpt_path}."
            )
        self.config.model.weights = None
        arch_args = self.config.model.arch_args or {}
        if arch_args.get("encoder_weights"):
            arch_args["encoder_weights"] = None  # the checkpoint has them: nothing to download

    def _check_kind(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume what another command has trained."""
        if STATE in checkpoint:
            raise InputError(
                f"{self.config.ckpt_path} is of `ovseg adapt`. Resume it with that command, or "
                f"start a new training from its weights: --model.weights {self.config.ckpt_path}."
            )

    def _find_unfinished(self) -> None:
        """Set `ckpt_path` to the last checkpoint of the newest unfinished run, if there is one."""
        if self.config.ckpt_path is not None:
            raise InputError(
                f"--resume looks for a checkpoint, but --ckpt_path is {self.config.ckpt_path}. "
                "Leave one of them out."
            )
        parent = Path(self.config.runs_dir) / self._config_name()
        is_first = rank_zero_only(lambda: True)() is not None
        path = find_unfinished(parent, self.config, is_first)
        if path is not None:
            self.config.ckpt_path = str(path)

    def instantiate_classes(self) -> None:
        """Build everything; a logger or callback may need a package that is not installed."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if was_raised_by(error, "jsonargparse"):
                raise explain(error, self.parser, self.settings, self.sections) from error
            raise

    def _check_own_network(self) -> None:
        arch = self.config.model.arch
        if "." in arch:
            data = self.config.data
            check_own_network(arch, self.model.network, data.image_size, data.classes)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Verify the data, then make the run folder, then build the trainer."""
        settings = self.config_init["trainer"]
        self.datamodule.needs_test = self.config.evaluate_test
        self._check_own_network()
        rank_zero_only(self._verify_data)()
        self.resumed = None  # Lightning reads it again

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
            trainer = super().instantiate_trainer(**kwargs)
        except InputError:
            self._release_run()
            raise
        except Exception as error:  # whatever the constructors of the Trainer's parts raise
            self._release_run()
            raise explain_refusal(error, self.settings) from error
        # What only shows an epoch comes after the checkpoints that keep it.
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.sort(key=lambda callback: isinstance(callback, Shown))
        return trainer

    def _verify_data(self) -> None:
        """Verify the dataset, and what the configuration asks of it."""
        self.datamodule.prepare_data()
        check_lesions(self.config, self.datamodule)
        if self.resumed is not None:
            check_data(Path(self.config.ckpt_path), self.resumed, self.datamodule)
        if self.config.model.weights is not None:
            check_held_out(self.config.model.weights, self.config.data.fold, self.datamodule)

    def _list_callbacks(self, settings: Namespace) -> list[Callback]:
        """The configuration's callbacks, and what depends on other parts of the configuration."""
        # The seed comes first: other callbacks may draw random numbers too.
        given = _as_list(settings["callbacks"])
        check_callbacks(given)
        for callback in given:
            if isinstance(callback, callbacks.EarlyStopping):
                callback.verbose = True  # else it ends the training without a word
        record = RunRecord(self.command, self.arguments, self.config)
        ordered = [EpochSeed(self.config.data.seed), record, *given]
        has_bar = any(isinstance(callback, ProgressBar) for callback in given)
        if settings["enable_progress_bar"] is not False and not has_bar:
            ordered.append(_build_progress_bar())
        if self.config.ema.decay:
            ordered.append(AveragedWeights(self.config.ema.decay))
        return ordered

    def _claim_run(self, settings: Namespace) -> dict[str, Any]:
        """Make the run folder and return the Trainer's arguments that follow from it."""
        parent = Path(self.config.runs_dir) / self._config_name()
        self.run_folder = rank_zero_only(RunFolder.claim)(parent)
        version = "elsewhere"  # other processes write nothing
        if self.run_folder is not None:
            version = self.run_folder.path.name

        loggers = [MetricsLog(parent.parent, parent.name, version)]
        if not isinstance(settings["logger"], bool):
            loggers += _as_list(settings["logger"])
        # Under SLURM Lightning writes and looks for checkpoints of its own there.
        root = settings["default_root_dir"] or parent / version
        return {"logger": loggers, "default_root_dir": root}

    def _config_name(self) -> str:
        """The name of the last --config file without suffix, see `short_name`.

        It is the run's name if that file is the `config.yaml` of a run, and "run" without a file.
        """
        if not self.config.config:
            return "run"
        path = Path(str(self.config.config[-1]))
        run = RunFolder(path.parent)
        if path.name == run.config.name:
            return run.config_name
        return short_name(path)

    def fit(self) -> None:
        """Train; a failure before the first step leaves no run folder.

        Raises:
            InputError: Lightning or the network refuse the settings.
            KeyboardInterrupt: Ctrl-C, which Lightning turns into the exit code of a failure; with
                how to continue.
            SIGTERMException: the process was asked to end; with how to continue.
        """
        try:
            self.trainer.fit(
                self.model, self.datamodule, ckpt_path=self.config.ckpt_path, weights_only=True
            )
        except SIGTERMException:
            self._release_unstarted_run()
            raise SIGTERMException(self._advise_resume()) from None
        except SystemExit:
            self._release_unstarted_run()
            raise KeyboardInterrupt(self._advise_resume()) from None
        except Exception as error:
            self._release_unstarted_run()
            if self.trainer.received_sigterm:
                # A scheduler sends it to the loader processes too, whose end is the error here.
                raise SIGTERMException(self._advise_resume()) from None
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

    def _advise_resume(self) -> str:
        """What an interrupted training has kept, and the command that continues it.

        Empty in processes that write nothing, and where the caller of this process continues it.
        """
        if self.run_folder is None or has_caller():
            return ""
        last = self.run_folder.checkpoint(LAST)
        if not last.is_file():
            return "No epoch is complete, so there is nothing to resume."
        # Of earlier resumes nothing is repeated.
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--ckpt_path")
        parser.add_argument("--resume", action="store_true")
        given, others = parser.parse_known_args(self.arguments)
        newest = RunFolder.list_versions(self.run_folder.path.parent)[-1]
        option = ["--resume"]
        has_path = self.config.ckpt_path is not None and not given.resume
        if has_path or newest != self.run_folder:
            option = ["--ckpt_path", str(last)]
        command = ["ovseg", self.command, *shorten_configs(others), *option]
        epochs = epochs_done(read_checkpoint(last))
        return f"Epoch {epochs} is safe in {last}. Continue with: {shlex.join(command)}"

    def evaluate(self, run: RunFolder) -> None:
        """Score the best checkpoint of the finished run on test."""
        output = run.evaluation("test")
        # Someone may have evaluated the run while it trained.
        print_summary(report_evaluation(Evaluation(run.path), output, overwrite=True))
        print(f"Snapshots: {run.snapshots}/")
        print(f"Evaluation: {output}/")

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

    def _find_unfinished(self) -> None:
        """Refuse to resume a run, because none is made.

        Raises:
            InputError: always.
        """
        raise InputError(
            "--resume is an option of `ovseg train` alone. Leave it out: cross_validate and "
            "sweep continue by themselves when they are called again."
        )

    def instantiate_trainer(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Nothing is trained, so no trainer is built."""


def build_cli(kind: type[TrainCLI], arguments: list[str]) -> TrainCLI:
    """Parse and check a command line of `train`, or of another command of this kind.

    Every `--config` of `train`, `cross_validate` and `sweep` is read from `arguments` here.
    """
    _restrict_imports()
    # Lightning warns if sys.argv holds arguments too. They stay there: the processes of a
    # distributed training are started with them.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    # Lightning itself calls what jsonargparse has deprecated.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    return kind(
        kind.sections["model"],
        kind.sections["data"],
        args=resolve_configs(arguments),
        run=False,
        seed_everything_default=42,
        parser_kwargs={
            "exit_on_error": False,
            "prog": f"ovseg {kind.command}",
            "description": "Train a network. --config takes a YAML file or the name of a shipped "
            "configuration; every option below is a key of it.",
        },
        trainer_defaults={
            "log_every_n_steps": 1,
            "enable_model_summary": False,  # `_announce` has it in a line
            "callbacks": [
                LastCheckpoint(),
                HistoryPlots(),
                BreakTraining(),
                EndIfDiverged(),
                Curves(),
            ],
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


def train_from_command_line(arguments: list[str], kind: type[TrainCLI] = TrainCLI) -> int:
    """Train, then score the best checkpoint on test, unless `evaluate_test` is false.

    With `postprocess: true` the post-processing (see `ovseg.inference.postprocessing`) is chosen on
    the validation split before that. If none can be chosen, the run is scored without it.

    Args:
        arguments: of the command line, without the command.
        kind: of the command.

    Returns:
        Exit code.

    Raises:
        InputError: a mistake in the configuration or the data, or training diverged.
    """
    cli = build_cli(kind, arguments)
    _announce(cli.model, cli.datamodule)
    cli.fit()

    run = cli.run_folder  # None in other processes, and with fast_dev_run, which writes nothing
    if run is None or not cli.trainer.is_global_zero:
        return 0
    if not run.has_checkpoint:
        print(f"No epoch was completed, so there is no checkpoint in {run.path}.")
        return 0

    _check_finite(cli.trainer, run)
    if cli.config.postprocess is not False:
        _choose_postprocessing(run, cli.config.postprocess)
    if cli.config.evaluate_test:
        cli.evaluate(run)
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


def _make_plain(config: Namespace) -> None:
    """Put the value in the place of each enumeration, which the run's config.yaml cannot hold.

    Callbacks of Lightning have such defaults for arguments that they declare as text.
    """
    for key, value in list(config.items()):
        for part in _as_list(value):
            if isinstance(part, Namespace):
                _make_plain(part)
        if isinstance(value, Enum):
            config[key] = value.value


def _build_progress_bar() -> LineProgress | TQDMProgressBar:
    """A bar on a terminal, lines in a log file."""
    if sys.stderr.isatty():
        return TQDMProgressBar(refresh_rate=1)
    return LineProgress()


def _announce(task: SegmentationTask, data: OvarianTumorDataModule) -> None:
    """Log the network's size and the dataset's in a line."""
    parameters = sum(parameter.numel() for parameter in task.parameters())
    counts = ", ".join(f"{len(data.pairs(split))} {split}" for split in data.splits)
    if data.hparams["fold"] is not None:
        counts += f" (fold {data.hparams['fold']} held out)"
    rank_zero_info(
        f"{task.hparams['arch']}: {parameters:,} parameters. "
        f"{data.root}: {counts} images of {data.hparams['image_size']}."
    )
    if data.hparams["train_on_valid"]:
        rank_zero_info(
            "The images of valid are trained on too (data.train_on_valid), so their scores are not "
            "those of new images."
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


def _choose_postprocessing(run: RunFolder, choice: bool | dict[str, Any]) -> None:
    """Choose the post-processing; if that fails print why, so that training still gets scores."""
    try:
        apply_choice(run.path, choice)
    except InputError as error:
        print(f"The run is used without post-processing: {error}")
