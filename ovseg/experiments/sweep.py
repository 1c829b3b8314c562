"""Search for the configuration values that validate best: Optuna proposes them, `train` tries them.

The study is an SQLite file, so a search that was stopped can be continued. A trial's value is the
best monitored validation value of its epochs; the test split is never scored.

A folder of results holds

- `trial_<n>.yaml`, the configuration of each trial, and its run folder `trial_<n>/version_0`,
- `trials.csv`, `best.yaml` and `sweep.png`, which are written after every trial.
"""

import copy
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ovseg.core.configs import changed_settings
from ovseg.core.errors import InputError
from ovseg.core.files import write_table
from ovseg.core.plots import draw_sweep
from ovseg.core.registry import choose
from ovseg.core.runs import RunFolder
from ovseg.core.yaml_files import read_yaml
from ovseg.experiments.child_training import (
    tell_of_validation,
    training_process,
    write_configuration,
)
from ovseg.metrics import monitor_mode
from ovseg.training.callbacks import CURVES

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    Space = dict[str, BaseDistribution]  # dotted key of the configuration -> values to try

# What can be monitored, and which of a run's curves has it.
MONITORS = {"val_loss": "losses", **dict.fromkeys(CURVES, "metrics")}
FIXED = (
    # sweep sets these itself
    "runs_dir",
    "ckpt_path",
    "evaluate_test",
    "postprocess",
    "best_checkpoint.monitor",
    "snapshots.num_infer_images",
    # these would change the images that trials are compared on
    "data.root",
    "data.fold",
    "data.valid_share",
    "data.train_on_valid",
    "data.exclude",
    "data.classes",
    "data.phantoms",
    "data.fit",
    "data.mask_threshold",
    "data.mask_blur",
    "data.invert_masks",
    "data.category_names",
)
MAX_FAILURES = 3  # in a row; then the values are hardly the cause
POLL_SECONDS = 0.2  # between two looks at a training's epochs


def sweep(
    config: dict[str, Any],
    space_path: Path,
    trials: int,
    output: Path,
    study_path: Path,
    monitor: str = "val_dice",
    seed: int = 0,
    prune: bool = False,
) -> "FrozenTrial":
    """Run trials until there are enough finished ones.

    A trial that failed or was killed does not count. The values of a killed one are tried again,
    and the values of trial n follow from (seed, n) and the finished trials: so a search that was
    interrupted tries the same values as one that was not.

    Args:
        config: the whole configuration, see `ovseg.experiments.train.read_configuration`.
        space_path: see `read_space`.
        trials: number of finished trials wanted, with those of earlier calls.
        output: folder of the results.
        study_path: the study's SQLite file; a second call with the same settings continues it.
        monitor: a key of `MONITORS`; each trial's best checkpoint is chosen by it too.
        seed: of the proposals.
        prune: end a trial whose best value so far is worse than the median of the earlier trials at
            that epoch, from the sixth trial on; a pruned trial counts as finished.

    Returns:
        The best trial.

    Raises:
        InputError: no Optuna, a mistake in the space, a study of other settings, or too many trials
            failed in a row.
    """
    check_arguments(config, trials, monitor, seed)
    import_optuna()  # before the space is read with it
    space = read_space(space_path, config)
    check_comparable(space, monitor, space_path)
    tell_of_validation(config)
    settings = {
        "config": {**config, "runs_dir": None},  # which is `output`
        "monitor": monitor,
        "seed": seed,
        "prune": prune,
        "space": {name: repr(distribution) for name, distribution in space.items()},
    }
    study = open_study(Path(study_path), Path(output), settings)
    config = {**config, "best_checkpoint": {"monitor": monitor}}

    failures = 0
    while count_finished(study) < trials:
        trial = propose(study, space, seed)
        if run_trial(study, trial, config, output, monitor):
            failures = 0
        else:
            failures += 1
        report_study(study, config, space, output, monitor)
        if failures == MAX_FAILURES:
            raise InputError(
                f"{MAX_FAILURES} trials failed in a row, see above. Correct the configuration or "
                "narrow the space."
            )
    report_study(study, config, space, output, monitor)
    return study.best_trial


def check_arguments(config: dict[str, Any], trials: int, monitor: str, seed: int) -> None:
    """Raise InputError if an argument of `sweep` is out of range, or a checkpoint is given."""
    choose("monitor", monitor, MONITORS)
    if trials < 1 or not 0 <= seed < 2**31:
        raise InputError(
            f"--trials is {trials} and --seed {seed}, expected at least 1 and 0..{2**31 - 1}."
        )
    if config["ckpt_path"] is not None:
        raise InputError(
            f"ckpt_path is {config['ckpt_path']}, but trials start from the beginning. Leave it "
            "out."
        )


def import_optuna() -> Any:
    """Optuna, without its log messages.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("sweep needs Optuna: pip install 'ovseg[sweep]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def read_space(path: Path, config: dict[str, Any]) -> "Space":
    """Read the keys to search and their ranges from a YAML file.

    A line is such as `model.optimizer_args.lr: {low: 1e-4, high: 1e-2, log: true}`. If both bounds
    are whole numbers without a point or exponent, whole numbers are tried. `step` and `log` exclude
    each other. `choices` is a list of plain values. If `data.image_size` is searched, trials are
    compared on masks of different sizes, which shifts their scores a little.

    Args:
        path: the file.
        config: the configuration whose keys they are; below a key `..._args` others may be added.

    Raises:
        InputError: unreadable, an unknown key, one of `FIXED`, or no range.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"{path} names no key. Expected YAML such as "
            "model.optimizer_args.lr: {low: 1e-4, high: 1e-2}."
        )
    space = {}
    for key, given in content.items():
        check_key(str(key), config, path)
        try:
            space[key] = _build_distribution(given)
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: {key} is {given} ({error}), expected {{low, high}} with log or step, or "
                "{choices: [...]}."
            ) from None
    return space


def _build_distribution(given: Any) -> "BaseDistribution":
    """Optuna's distribution of a range; Optuna and Python raise errors of several kinds."""
    distributions = import_optuna().distributions
    choices = given.get("choices")
    if isinstance(choices, list) and not any(isinstance(each, list | dict) for each in choices):
        return distributions.CategoricalDistribution(**given)
    # A bool is an int for isinstance.
    if type(given.get("low")) is int and type(given.get("high")) is int:
        return distributions.IntDistribution(**given)
    return distributions.FloatDistribution(**given)


def check_key(key: str, config: dict[str, Any], path: Path) -> None:
    """Raise InputError unless a key can be searched: one of the configuration, or below `..._args`.

    Args:
        key: dotted.
        config: the whole configuration.
        path: the file of the space, for the message.
    """
    if key in FIXED:
        raise InputError(f"{path}: {key} has to be the same in all trials. Leave it out.")

    place: Any = config
    below_args = False  # where any key may be added
    for name in key.split("."):
        is_known = isinstance(place, dict) and name in place
        if not is_known and not below_args:
            raise InputError(
                f"{path}: {key} is no key of the configuration. `ovseg train --print_config` "
                "shows all."
            )
        below_args = below_args or name.endswith("_args")
        place = place[name] if is_known else None
    if isinstance(place, dict) or key.endswith("_args"):
        raise InputError(f"{path}: {key} holds further keys. Name one of them.")


def check_comparable(space: "Space", monitor: str, path: Path) -> None:
    """Raise InputError if trials of different loss functions would be compared by their loss."""
    losses = [key for key in space if key.startswith("model.loss")]
    if losses and monitor == "val_loss":
        raise InputError(
            f"{path}: {losses[0]} changes what val_loss means, so trials can't be compared by it. "
            "Use --monitor val_dice."
        )


def with_values(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of a configuration with values at dotted keys."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        *parents, name = key.split(".")
        place = config
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                place[parent] = {}
            place = place[parent]
        place[name] = value
    return config


def open_study(path: Path, output: Path, settings: dict[str, Any]) -> "Study":
    """Open the study of a file, or make a new one.

    A trial that a killed call left running is marked as failed, and its values are tried next.

    Raises:
        InputError: the file is no study or one of other settings, or the output folder holds trials
            of another study.
    """
    optuna = import_optuna()
    path.parent.mkdir(parents=True, exist_ok=True)
    pruner = optuna.pruners.MedianPruner() if settings["prune"] else optuna.pruners.NopPruner()
    mode = monitor_mode(settings["monitor"])
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{path}",
            study_name="ovseg",
            direction="maximize" if mode == "max" else "minimize",
            pruner=pruner,
            load_if_exists=True,
        )
    except Exception as error:  # SQLAlchemy's, which only Optuna imports
        raise InputError(
            f"{path} is not a study of sweep ({type(error).__name__}). Choose another --study."
        ) from None

    earlier = study.user_attrs.get("settings")
    if earlier is None:
        if any(output.glob("trial_*")):
            raise InputError(
                f"{output} holds trials of another study than {path}. Choose another --output."
            )
    elif changed := changed_settings(earlier, settings):
        raise InputError(
            f"{path} holds a study of other settings: {changed}. Go back to them, or choose "
            "another --study."
        )
    study.set_user_attr("settings", settings)

    states = optuna.trial.TrialState
    for trial in study.get_trials(states=(states.RUNNING,)):
        study.tell(trial.number, state=states.FAIL)
        study.enqueue_trial(trial.params, user_attrs={"repeats": trial.number})
    return study


def propose(study: "Study", space: "Space", seed: int) -> "Trial":
    """A new trial, whose values follow from the seed and the number of trials so far.

    With the same seed in every call the sampler would propose its first values again.
    """
    trials = study.get_trials(deepcopy=False)
    number = sum("repeats" not in trial.user_attrs for trial in trials)
    study.sampler = import_optuna().samplers.TPESampler(seed=seed + number)
    return study.ask(fixed_distributions=space)


def count_finished(study: "Study") -> int:
    """Number of trials that are complete or were pruned."""
    states = import_optuna().trial.TrialState
    return len(study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED)))


def run_trial(
    study: "Study", trial: "Trial", config: dict[str, Any], output: Path, monitor: str
) -> bool:
    """Train with a trial's values, and record its result in the study.

    Returns:
        False if training failed.
    """
    config_path = output / f"trial_{trial.number}.yaml"
    trial_config = with_values(config, trial.params)
    trial_config = {
        **trial_config,
        "data": {**trial_config["data"], "train_on_valid": False},
        "runs_dir": str(output),
        "evaluate_test": False,
        "postprocess": False,
        "snapshots": {"num_infer_images": 0},
    }
    write_configuration(config_path, trial_config)
    print(f"Trial {trial.number}: {describe_values(trial.params)}", flush=True)

    run = RunFolder.first(output / config_path.stem)
    with training_process(config_path) as process:
        pruned = watch(process, trial, run, monitor)
        code = process.wait()

    states = import_optuna().trial.TrialState
    values = read_values(run, monitor)
    if code or not values:
        study.tell(trial, state=states.FAIL)
        print(f"Trial {trial.number} failed with exit code {code}.", flush=True)
        return False

    best = max(values) if monitor_mode(monitor) == "max" else min(values)
    if pruned:
        study.tell(trial, state=states.PRUNED)
        print(f"Trial {trial.number}: {monitor} {best:.4f} when it was pruned", flush=True)
    else:
        study.tell(trial, best)
        print(f"Trial {trial.number}: {monitor} {best:.4f}", flush=True)
    return True


def describe_values(values: dict[str, Any]) -> str:
    """`model.optimizer_args.lr 0.001, data.batch_size 4`."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def watch(process: subprocess.Popen[bytes], trial: "Trial", run: RunFolder, monitor: str) -> bool:
    """Report a training's epochs to its trial until it ends, and end it if the pruner says so.

    Returns:
        Whether the trial was pruned.
    """
    reported = 0
    while True:
        running = process.poll() is None
        values = read_values(run, monitor)
        for epoch, value in enumerate(values[reported:], reported + 1):
            trial.report(value, epoch)
            if running and trial.should_prune():
                run.break_file.touch()
                return True
        reported = len(values)
        if not running:
            return False
        time.sleep(POLL_SECONDS)


def read_values(run: RunFolder, monitor: str) -> list[float]:
    """The monitored value of each epoch of a run so far; empty if there is none yet."""
    try:
        curves = pd.read_csv(run.curves(MONITORS[monitor], ".csv"))
        return curves[monitor].dropna().tolist()
    except (FileNotFoundError, KeyError):
        return []


def report_study(
    study: "Study", config: dict[str, Any], space: "Space", output: Path, monitor: str
) -> None:
    """Write `trials.csv`; from the first complete trial on also `best.yaml` and `sweep.png`."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        row = {"trial": trial.number, "state": trial.state.name.lower(), "value": trial.value}
        rows.append({**row, **trial.params})
    table = pd.DataFrame(rows)
    write_table(output / "trials.csv", table)

    if not rows or not (table["state"] == "complete").any():
        return
    write_configuration(output / "best.yaml", with_values(config, study.best_params))
    complete = table[table["state"] == "complete"].infer_objects()
    is_logarithmic = {name: getattr(values, "log", False) for name, values in space.items()}
    draw_sweep(complete, is_logarithmic, monitor, monitor_mode(monitor), output / "sweep.png")
