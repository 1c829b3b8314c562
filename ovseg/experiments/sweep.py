"""A search for configuration values that validate best: Optuna proposes, `train` runs each trial in its own process.

The study is an SQLite file, so a search that was stopped goes on. The objective is the best monitored validation value
of a run's epochs; the test split is never scored. A folder of results holds for each trial `trial_<n>.yaml` and its run
folder `trial_<n>/version_0`, and `trials.csv`, `best.yaml` and `sweep.png`, which are written after every trial.
"""

import copy
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ovseg.core.errors import InputError
from ovseg.core.files import write_table
from ovseg.core.plots import draw_sweep
from ovseg.core.registry import choose
from ovseg.core.runs import RunFolder
from ovseg.core.yaml_files import read_yaml
from ovseg.experiments.subtraining import changed_settings, training_process, write_configuration
from ovseg.metrics import monitor_mode
from ovseg.training.callbacks import CURVES

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

MONITORS = {"val_loss": "losses", **dict.fromkeys(CURVES, "metrics")}  # kinds of curves
# What sweep sets itself, and what would change the images that trials are compared on.
FIXED = (
    "runs_dir",
    "ckpt_path",
    "evaluate_test",
    "postprocess",
    "best_checkpoint.monitor",
    "snapshots.num_infer_images",
)
FIXED += (
    "data.root",
    "data.fold",
    "data.exclude",
    "data.classes",
    "data.phantoms",
    "data.fit",
    "data.mask_threshold",
)
FAILURES = 3  # in a row, after which the cause is not the values


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
    """Run trials until that many are finished; those that failed or were killed are marked so and do not count.

    Trial n is proposed from (seed, n) and the finished trials, and the values of a killed trial are tried again, so a
    search that was interrupted goes the way of one that was not.

    Args:
        config: the whole configuration, see `ovseg.experiments.train.read_configuration`.
        space_path: see `read_space`.
        trials: finished trials wanted in all, earlier calls' counted.
        output: folder of the results.
        study_path: the study's SQLite file; a second call with the same settings goes on in it.
        monitor: a key of `MONITORS`; each trial's best checkpoint is chosen by it too.
        seed: of the proposals.
        prune: end a trial whose best value so far is worse than the median of the earlier trials' at that epoch, from
            the sixth trial on; a pruned trial counts as finished.

    Returns:
        The best trial.

    Raises:
        InputError: no Optuna, a mistake in the space, other settings than the study's, or trials that fail in a row.
    """
    choose("monitor", monitor, MONITORS)
    if trials < 1 or not 0 <= seed < 2**31:
        raise InputError(
            f"--trials is {trials} and --seed {seed}, expected at least 1 and 0..{2**31 - 1}."
        )
    if config["ckpt_path"] is not None:
        raise InputError(
            f"ckpt_path is {config['ckpt_path']}, but trials begin anew. Leave it out."
        )
    space = read_space(space_path, config)
    check_comparable(space, monitor, space_path)
    settings = {
        "config": {**config, "runs_dir": None},
        "monitor": monitor,
        "seed": seed,
        "prune": prune,
    }
    settings["space"] = {name: repr(distribution) for name, distribution in space.items()}
    study = open_study(Path(study_path), Path(output), settings)
    config = {**config, "best_checkpoint": {"monitor": monitor}}
    failures = 0
    while count_finished(study) < trials:
        done = run_trial(study, propose(study, space, seed), config, output, monitor)
        failures = 0 if done else failures + 1
        report_study(study, config, space, output, monitor)
        if failures == FAILURES:
            raise InputError(
                f"{FAILURES} trials failed in a row, see above. Mend the configuration or narrow the space."
            )
    report_study(study, config, space, output, monitor)
    return study.best_trial


def import_optuna() -> Any:
    """Optuna, told to be quiet.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("sweep needs Optuna: pip install 'ovseg[sweep]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def read_space(path: Path, config: dict[str, Any]) -> dict[str, "BaseDistribution"]:
    """The keys to search, such as `model.optimizer_args.lr: {low: 1e-4, high: 1e-2, log: true}`, in a YAML file.

    Bounds that are both whole numbers, without a point or exponent, search whole numbers. `step` and `log` exclude
    each other. `choices` is a list of plain values. With `data.image_size` the trials are compared on masks of
    different sizes, which shifts their scores a little.

    Args:
        path: the file.
        config: the configuration whose keys they are; below a key `..._args` others may be added.

    Raises:
        InputError: unreadable, an unknown key, one that has to stay the same, or no range.
    """
    distributions = import_optuna().distributions
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"{path} names no key. Expected YAML such as model.optimizer_args.lr: {{low: 1e-4, high: 1e-2}}."
        )
    space = {}
    for key, given in content.items():
        check_key(str(key), config, path)
        try:
            plain = isinstance(given.get("choices"), list) and all(
                not isinstance(c, list | dict) for c in given["choices"]
            )
            whole = all(type(given.get(bound)) is int for bound in ("low", "high"))
            kind = "Categorical" if plain else "Int" if whole else "Float"
            space[key] = getattr(distributions, f"{kind}Distribution")(**given)
        except (AttributeError, TypeError, ValueError) as error:
            wanted = "{low, high} with log or step, or {choices: [...]}"
            raise InputError(f"{path}: {key} is {given} ({error}), expected {wanted}.") from None
    return space


def check_key(key: str, config: dict[str, Any], path: Path) -> None:
    """Raise InputError unless a dotted key can be searched: it is in the configuration, or below `..._args`."""
    if key in FIXED:
        raise InputError(f"{path}: {key} has to be the same in all trials. Leave it out.")
    place, free = config, False
    for name in key.split("."):
        if not free and (not isinstance(place, dict) or name not in place):
            raise InputError(
                f"{path}: {key} is no key of the configuration. `train --print_config` shows all."
            )
        free = free or name.endswith("_args")
        place = place.get(name) if isinstance(place, dict) else None
    if isinstance(place, dict) or key.endswith("_args"):
        raise InputError(f"{path}: {key} holds further keys. Name one of them.")


def check_comparable(space: dict[str, "BaseDistribution"], monitor: str, path: Path) -> None:
    """Raise InputError where trials of different losses would be compared by their losses."""
    losses = [key for key in space if key.startswith("model.loss")]
    if losses and monitor == "val_loss":
        raise InputError(
            f"{path}: {losses[0]} changes what val_loss means, so trials do not compare. Use --monitor val_dice."
        )


def with_values(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of a configuration with values at dotted keys."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        *parents, name = key.split(".")
        place = config
        for parent in parents:
            place[parent] = place[parent] if isinstance(place.get(parent), dict) else {}
            place = place[parent]
        place[name] = value
    return config


def open_study(path: Path, output: Path, settings: dict[str, Any]) -> "Study":
    """The study of a file, a new one where there is none; what a killed call left running is marked failed.

    Raises:
        InputError: no study file, one of other settings, or the output folder holds trials of another study.
    """
    optuna = import_optuna()
    path.parent.mkdir(parents=True, exist_ok=True)
    pruner = optuna.pruners.MedianPruner() if settings["prune"] else optuna.pruners.NopPruner()
    options = {"study_name": "ovseg", "load_if_exists": True, "pruner": pruner}
    direction = "maximize" if monitor_mode(settings["monitor"]) == "max" else "minimize"
    try:
        study = optuna.create_study(storage=f"sqlite:///{path}", direction=direction, **options)
    except Exception as error:  # SQLAlchemy's, which only Optuna imports
        raise InputError(
            f"{path} is not a study of sweep ({type(error).__name__}). Choose another --study."
        ) from None
    earlier = study.user_attrs.get("settings")
    if earlier is None and list(output.glob("trial_*")):
        raise InputError(
            f"{output} holds trials of another study than {path}. Choose another --output."
        )
    changed = changed_settings(earlier, settings) if earlier else ""
    if changed:
        raise InputError(
            f"{path} holds a study of other settings: {changed}. Go back to them, or choose another --study."
        )
    study.set_user_attr("settings", settings)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params, user_attrs={"repeats": trial.number})
    return study


def propose(study: "Study", space: dict[str, "BaseDistribution"], seed: int) -> "Trial":
    """A new trial; a sampler that was seeded alike in every call would propose its first values again."""
    number = sum("repeats" not in trial.user_attrs for trial in study.get_trials(deepcopy=False))
    study.sampler = import_optuna().samplers.TPESampler(seed=seed + number)
    return study.ask(fixed_distributions=space)


def count_finished(study: "Study") -> int:
    """Trials that came to their end or were pruned."""
    states = import_optuna().trial.TrialState
    return len(study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED)))


def run_trial(
    study: "Study", trial: "Trial", config: dict[str, Any], output: Path, monitor: str
) -> bool:
    """Train with a trial's values and tell the study; whether it did not fail."""
    states, path = import_optuna().trial.TrialState, output / f"trial_{trial.number}.yaml"
    fixed = {
        "runs_dir": str(output),
        "evaluate_test": False,
        "postprocess": False,
        "snapshots": {"num_infer_images": 0},
    }
    write_configuration(path, {**with_values(config, trial.params), **fixed})
    values = ", ".join(f"{name} {value}" for name, value in trial.params.items())
    print(f"Trial {trial.number}: {values}", flush=True)
    run = RunFolder(output / path.stem / "version_0")
    with training_process(path) as process:
        pruned = watch(process, trial, run, monitor)
        code = process.wait()
    found = read_values(run, monitor)
    if code or not found:
        study.tell(trial, state=states.FAIL)
        print(f"Trial {trial.number} failed with exit code {code}.", flush=True)
        return False
    best = max(found) if monitor_mode(monitor) == "max" else min(found)
    study.tell(trial, *([None, states.PRUNED] if pruned else [best]))
    print(
        f"Trial {trial.number}: {monitor} {best:.4f}{' when it was pruned' if pruned else ''}",
        flush=True,
    )
    return True


def watch(process: subprocess.Popen, trial: "Trial", run: RunFolder, monitor: str) -> bool:
    """Report a training's epochs as they come; end it where the pruner asks, and say whether it did."""
    reported, running = 0, True
    while running:
        running = process.poll() is None
        values = read_values(run, monitor)
        for epoch, value in enumerate(values[reported:], reported + 1):
            trial.report(value, epoch)
            if running and trial.should_prune():
                run.break_file.touch()
                return True
        reported = len(values)
        time.sleep(0.2 if running else 0)
    return False


def read_values(run: RunFolder, monitor: str) -> list[float]:
    """The monitored value of each epoch of a run so far; empty where there is none yet, or it is not logged."""
    try:
        return pd.read_csv(run.curves(MONITORS[monitor], ".csv"))[monitor].dropna().tolist()
    except (FileNotFoundError, KeyError):
        return []


def report_study(
    study: "Study",
    config: dict[str, Any],
    space: dict[str, "BaseDistribution"],
    output: Path,
    monitor: str,
) -> None:
    """Write `trials.csv`, and once a trial is complete `best.yaml`, ready for `train`, and `sweep.png`."""
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value,
            **trial.params,
        }
        for trial in study.get_trials(deepcopy=False)
    ]
    table = pd.DataFrame(rows)
    write_table(output / "trials.csv", table)
    complete = table[table["state"] == "complete"] if rows else table
    if len(complete):
        write_configuration(output / "best.yaml", with_values(config, study.best_params))
        logarithmic = {
            name: getattr(distribution, "log", False) for name, distribution in space.items()
        }
        draw_sweep(
            complete.infer_objects(),
            logarithmic,
            monitor,
            monitor_mode(monitor),
            output / "sweep.png",
        )
