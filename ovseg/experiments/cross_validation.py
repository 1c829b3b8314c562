"""K trainings, each of which holds one fold out, and the scores of all images by the networks that did not see them.

A folder of results holds `cross_validation.json` (the settings), for each fold `fold_<k>.yaml`, its run folders
`fold_<k>/version_<n>` (a resumed training gets a further one) and, when it is trained, `fold_<k>/finished.json`; at the
end `ensemble.json`, which names the members, `out_of_fold.{csv,png}` and `summary.json`.
"""

import json
import math
from pathlib import Path
from typing import Any

from ovseg.core.checkpoints import read_checkpoint
from ovseg.core.errors import InputError
from ovseg.core.files import content_digest, write_json
from ovseg.core.runs import RunFolder, run_of_checkpoint
from ovseg.data.manifest import read_folds
from ovseg.evaluation.postprocessing_search import print_search, search_postprocessing
from ovseg.experiments.out_of_fold import score_folds
from ovseg.experiments.subtraining import changed_settings, training_process, write_configuration

SETTINGS, FINISHED = "cross_validation.json", "finished.json"


def cross_validate(
    config: dict[str, Any], folds: int, output: Path, device: str = "auto"
) -> dict[str, Any]:
    """Train every fold that is not trained yet, then score them all.

    A fold that was killed goes on from its last complete epoch. One that fails does not keep the others from training.
    With `postprocess: true` the post-processing of their ensemble is chosen at the end; the scores are without it.

    Args:
        config: the whole configuration, see `ovseg.experiments.train.read_configuration`.
        folds: how many the dataset was prepared with.
        output: folder of the results; a second call with the same settings goes on in it.
        device: of the scoring, see `ovseg.inference.predictor.choose_device`.

    Returns:
        The summary, see `ovseg.experiments.out_of_fold.score_folds`.

    Raises:
        InputError: no such folds, `output` holds results of other settings, or a fold failed.
    """
    for name, value in (("data.fold", config["data"]["fold"]), ("ckpt_path", config["ckpt_path"])):
        if value is not None:
            raise InputError(
                f"{name} is {value}, but cross_validate sets it for each fold. Leave it out."
            )
    output = Path(output)
    digest = claim_output(output, describe(config, folds))
    runs, failed = [], []
    for fold in range(folds):
        run = finished_run(output, fold, digest)
        if run is None:
            print(f"Fold {fold}, {fold + 1} of {folds}: {output / f'fold_{fold}'}", flush=True)
            run = train_fold(config, output, fold, digest)
        runs.append(run)
        failed += [] if run else [f"fold_{fold}"]
    if failed:
        raise InputError(
            f"{len(failed)} of {folds} folds failed, see above: {', '.join(failed)}. The others are kept: mend the "
            "cause and run the same command again."
        )
    write_json(
        RunFolder(output).ensemble,
        {"members": [run.relative_to(output).as_posix() for run in runs]},
    )
    summary = score_folds(runs, output, device)
    if config["postprocess"]:
        print_search(search_postprocessing(output, device=device))
    return summary


def describe(config: dict[str, Any], folds: int) -> dict[str, Any]:
    """The settings that all results in a folder share: the configuration, and which image is in which fold.

    Raises:
        InputError: the dataset has not that many folds.
    """
    dealt = sorted(
        (*key, fold) for key, fold in read_folds(Path(config["data"]["root"]), folds).items()
    )
    return {
        "folds": folds,
        "folds_sha256": content_digest(dealt),
        "config": {**config, "runs_dir": None},
    }


def claim_output(output: Path, settings: dict[str, Any]) -> str:
    """Write the settings into a new folder, or check that an older one has the same.

    Returns:
        Their digest.

    Raises:
        InputError: the folder holds other settings, which are named, or something else.
    """
    path, settings = output / SETTINGS, json.loads(json.dumps(settings))
    if path.is_file():
        changed = changed_settings(json.loads(path.read_text(encoding="utf-8")), settings)
        if changed:
            raise InputError(
                f"{output} holds a cross-validation of other settings: {changed}. Go back to them, or choose another "
                "--output."
            )
    elif output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(
            f"{output} holds something else than a cross-validation. Choose another --output."
        )
    else:
        write_json(path, settings)
    return content_digest(settings)


def finished_run(output: Path, fold: int, digest: str) -> Path | None:
    """The run folder of a fold whose training is finished; None where it is not.

    Raises:
        InputError: it was trained with other settings than those of the folder.
    """
    path = output / f"fold_{fold}" / FINISHED
    if not path.is_file():
        return None
    marker = json.loads(path.read_text(encoding="utf-8"))
    if marker["settings_sha256"] != digest:
        raise InputError(
            f"{path} is of another cross-validation. Delete {path.parent}, or choose another --output."
        )
    return path.parent / marker["run"]


def train_fold(config: dict[str, Any], output: Path, fold: int, digest: str) -> Path | None:
    """Train a fold, from where an earlier training of it was stopped; its run folder, or None where it failed."""
    folder, path = output / f"fold_{fold}", output / f"fold_{fold}.yaml"
    own = {
        "data": {**config["data"], "fold": fold},
        "runs_dir": str(output),
        "evaluate_test": False,
        "postprocess": False,
    }
    write_configuration(path, {**config, **own})
    last, over = find_last(folder, config)
    if not over:
        with training_process(path, last) as process:
            code = process.wait()
        if code:
            print(f"Fold {fold} failed with exit code {code}.", flush=True)
            return None
        last, _ = find_last(folder, config)
    if last is None or not run_of_checkpoint(last).checkpoint("best").is_file():
        print(f"Fold {fold} came to no end of an epoch, so it has no checkpoint.", flush=True)
        return None
    run = run_of_checkpoint(last).path
    write_json(folder / FINISHED, {"run": run.name, "settings_sha256": digest})
    return run


def find_last(folder: Path, config: dict[str, Any]) -> tuple[Path | None, bool]:
    """The newest whole `last.ckpt` of a fold's run folders, if any, and whether training had come to its end there.

    A training that is killed between its last epoch and its marker must not go on: where early stopping ended it, a
    resume would train an epoch more. One that diverged is no use: the fold goes on from an older one, or anew.
    """
    for run in reversed(RunFolder.list_versions(folder)):
        path = run.checkpoint("last")
        if not path.is_file():
            continue
        try:
            return path, is_over(read_sound(path), config["trainer"])
        except InputError as error:
            print(f"{error} An older one is taken, or the fold is begun anew.", flush=True)
    return None, False


def read_sound(path: Path) -> dict[str, Any]:
    """A checkpoint, see `read_checkpoint`, of a training that had not diverged.

    Raises:
        InputError: it can't be read, or `train` would fail at its validation loss.
    """
    checkpoint = read_checkpoint(path)
    loss = checkpoint["callbacks"]["HistoryPlots"]["rows"][-1].get("val_loss", 0.0)
    if not math.isfinite(loss):
        raise InputError(f"{path} is of a training that diverged: val_loss is {loss}.")
    return checkpoint


def is_over(checkpoint: dict[str, Any], trainer: dict[str, Any]) -> bool:
    """Whether all epochs are done, or early stopping has ended the training."""
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    stoppers = [
        state for name, state in checkpoint["callbacks"].items() if name.startswith("EarlyStopping")
    ]
    stopped = any(state["wait_count"] >= state["patience"] for state in stoppers)
    limit = trainer["max_epochs"] or 1000  # Lightning's own, where nothing is said
    return 0 < limit <= done or (stopped and done >= (trainer["min_epochs"] or 0))
