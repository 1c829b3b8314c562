"""Cross-validation: a training for each fold, and scores of the images that it held out.

A folder of results holds

- `cross_validation.json`, the settings,
- `fold_<k>.yaml`, the configuration of each fold,
- `fold_<k>/version_<n>`, its run folders (a training that is resumed gets a further one),
- `fold_<k>/finished.json`, when the fold is trained,
- `ensemble.json`, which names the run of each fold, when all are trained,
- `out_of_fold.{csv,png}` and `summary.json`, the scores.
"""

import json
import math
from pathlib import Path
from typing import Any

from msgspec import Struct

from ovseg.core.checkpoints import path_inside, read_checkpoint
from ovseg.core.configs import changed_settings
from ovseg.core.errors import InputError
from ovseg.core.files import content_digest, write_json
from ovseg.core.runs import BEST, LAST, RunFolder
from ovseg.core.schema import read_json
from ovseg.data.manifest import read_folds
from ovseg.evaluation.postprocessing_search import apply_choice, read_choice
from ovseg.experiments.child_training import (
    tell_of_validation,
    training_process,
    write_configuration,
)
from ovseg.experiments.out_of_fold import score_folds
from ovseg.training.callbacks import last_epoch
from ovseg.training.resume import is_finished

FINISHED = "finished.json"


class FinishedFile(Struct):
    """`finished.json`: the name of the fold's run folder, and for which settings."""

    run: str
    settings_sha256: str


def cross_validate(
    config: dict[str, Any], folds: int, output: Path, device: str = "auto"
) -> dict[str, Any]:
    """Train every fold that is not trained yet, then score all images.

    A fold whose training was killed is resumed from its last complete epoch. If one fold fails, the
    others are trained all the same. With `postprocess: true` a post-processing of the ensemble is
    chosen at the end; the scores are without it.

    Args:
        config: the whole configuration, see `ovseg.experiments.train.read_configuration`.
        folds: the number of folds that the dataset was prepared with.
        output: folder of the results; a second call with the same settings continues there.
        device: of the scoring, see `ovseg.core.device.choose_device`.

    Returns:
        The summary, see `ovseg.experiments.out_of_fold.score_folds`.

    Raises:
        InputError: no such folds, `output` holds results of other settings, or a fold failed.
    """
    check_not_set("data.fold", config["data"]["fold"])
    check_not_set("ckpt_path", config["ckpt_path"])
    read_choice(config["postprocess"], config["data"]["classes"])
    tell_of_validation(config)
    output = Path(output)
    digest = claim_output(output, comparable_settings(config, folds))

    runs = []
    failed = []
    for fold in range(folds):
        run = finished_run(output, fold, digest)
        if run is None:
            folder = output / f"fold_{fold}"
            print(f"Fold {fold} (of 0 to {folds - 1}): {folder}", flush=True)
            run = train_fold(config, output, fold, digest)
        if run is None:
            failed.append(f"fold_{fold}")
        else:
            runs.append(run)
    if failed:
        raise InputError(
            f"{len(failed)} of {folds} folds failed, see above: {', '.join(failed)}. The others "
            "are kept: fix the cause and run the same command again."
        )

    members = [run.relative_to(output).as_posix() for run in runs]
    write_json(RunFolder(output).ensemble, {"members": members})
    summary = score_folds(output, config["best_checkpoint"]["monitor"], device)
    apply_choice(output, config["postprocess"], device)
    return summary


def check_not_set(key: str, value: object) -> None:
    """Raise InputError if the configuration has a value that each fold sets itself."""
    if value is not None:
        raise InputError(
            f"{key} is {value}, but cross_validate sets it for each fold. Leave it out."
        )


def comparable_settings(config: dict[str, Any], folds: int) -> dict[str, Any]:
    """The settings that all results in a folder share: configuration, and the images of each fold.

    Raises:
        InputError: the dataset has another number of folds.
    """
    fold_of_image = read_folds(Path(config["data"]["root"]), folds)
    rows = sorted((split, stem, fold) for (split, stem), fold in fold_of_image.items())
    return {
        "folds": folds,
        "folds_sha256": content_digest(rows),
        "config": {**config, "runs_dir": None},  # left out: it is always the folder of the results
    }


def claim_output(output: Path, settings: dict[str, Any]) -> str:
    """Write the settings into a new folder, or check that an existing one has the same.

    Returns:
        Digest of the settings.

    Raises:
        InputError: the folder holds results of other settings, which are named, or something else.
    """
    path = RunFolder(output).cross_validation
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    if path.is_file():
        remedy = "Choose another --output."
        earlier = read_json(path, dict[str, Any], "ovseg cross_validate", remedy)
        changed = changed_settings(earlier, settings)
        if changed:
            raise InputError(
                f"{output} holds a cross-validation of other settings: {changed}. Go back to "
                "them, or choose another --output."
            )
    elif output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(
            f"{output} holds something else than a cross-validation. Choose another --output."
        )
    else:
        write_json(path, settings)
    return content_digest(settings)


def finished_run(output: Path, fold: int, digest: str) -> Path | None:
    """The run folder of a fold that is trained; None if it is not.

    Raises:
        InputError: it was trained with other settings than those of the folder.
    """
    path = output / f"fold_{fold}" / FINISHED
    if not path.is_file():
        return None
    remedy = f"Delete {path.parent}, or choose another --output."
    record = read_json(path, FinishedFile, "ovseg cross_validate", remedy)
    if record["settings_sha256"] != digest:
        raise InputError(f"{path} is of another cross-validation. {remedy}")
    return path_inside(path, record["run"])


def train_fold(config: dict[str, Any], output: Path, fold: int, digest: str) -> Path | None:
    """Train a fold in a child process, from its last checkpoint if there is one.

    Its configuration is written to `fold_<k>.yaml` before, and `finished.json` after.

    Returns:
        The run folder, or None if training failed.
    """
    folder = output / f"fold_{fold}"
    config_path = output / f"fold_{fold}.yaml"
    fold_config = {
        **config,
        "data": {**config["data"], "fold": fold, "train_on_valid": False},
        "runs_dir": str(output),
        "evaluate_test": False,
        "postprocess": False,
    }
    write_configuration(config_path, fold_config)

    checkpoint, is_trained = find_last_checkpoint(folder, config["trainer"])
    if not is_trained:
        with training_process(config_path, checkpoint) as process:
            code = process.wait()
        if code:
            print(f"Fold {fold} failed with exit code {code}.", flush=True)
            return None
        checkpoint, _ = find_last_checkpoint(folder, config["trainer"])

    if checkpoint is None or not RunFolder.of_checkpoint(checkpoint).checkpoint(BEST).is_file():
        print(f"Fold {fold} completed no epoch, so it has no checkpoint.", flush=True)
        return None
    run_path = RunFolder.of_checkpoint(checkpoint).path
    write_json(folder / FINISHED, {"run": run_path.name, "settings_sha256": digest})
    return run_path


def find_last_checkpoint(folder: Path, trainer: dict[str, Any]) -> tuple[Path | None, bool]:
    """The newest usable `last.ckpt` of a fold, and whether training was finished with it.

    A training that is killed after its last epoch, but before `finished.json` is written, must not
    be resumed: if early stopping ended it, a resume would train one epoch more. A checkpoint of
    a training that diverged is not usable: the fold is resumed from an older one, or restarted.

    Args:
        folder: holds the run folders of the fold.
        trainer: the configuration's section.

    Returns:
        The checkpoint, or None if there is none; whether training was finished.
    """
    for run in reversed(RunFolder.list_versions(folder)):
        path = run.checkpoint(LAST)
        if not path.is_file():
            continue
        try:
            checkpoint = read_finite_checkpoint(path)
        except InputError as error:
            print(f"{error} The fold is resumed from an older one, or restarted.", flush=True)
            continue
        return path, is_finished(checkpoint, trainer)
    return None, False


def read_finite_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint of a training that did not diverge, see `read_checkpoint`.

    Raises:
        InputError: it can't be read, or its validation loss is infinite or NaN, with which `train`
            fails.
    """
    checkpoint = read_checkpoint(path)
    loss = last_epoch(checkpoint).get("val_loss", 0.0)
    if not math.isfinite(loss):
        raise InputError(f"{path} is of a training that diverged: val_loss is {loss}.")
    return checkpoint
