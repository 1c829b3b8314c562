"""The scores of an exported network: of its own run on test, or of a cross-validation."""

from pathlib import Path
from typing import Any

from msgspec import Struct

from ovseg.core.checkpoints import Member, checkpoint_digest, read_members
from ovseg.core.configs import changed_settings, flatten
from ovseg.core.errors import InputError
from ovseg.core.runs import RunFolder
from ovseg.core.schema import read_json
from ovseg.core.yaml_files import read_yaml

KEPT = ("images", "scores", "failures", "intervals", "leakage")
# Settings in which the networks of a cross-validation and one of all images may differ.
NO_PART_OF_THE_RECIPE = (
    "ckpt_path",
    "data.cache",
    "data.fold",
    "data.num_workers",
    "data.root",
    "data.seed",
    "data.train_on_valid",
    "evaluate_test",
    "postprocess",
    "runs_dir",
    "seed_everything",
    "snapshots",
)


class CrossValidationFile(Struct):
    """What is read of `cross_validation.json`: the configuration of its trainings."""

    config: dict[str, Any]


def read_test_scores(run: RunFolder, digest: str) -> dict[str, Any] | None:
    """The scores of a run on the test images.

    Args:
        run: the run.
        digest: SHA-256 of the checkpoint that was scored.

    Returns:
        `of`, which images were scored, and of the evaluation's summary `images`, `scores`,
        `failures`, `intervals` and `leakage`; None where this checkpoint has no evaluation.
    """
    path = run.evaluation("test") / "summary.json"
    if not path.is_file():
        return None
    summary = read_json(path, dict[str, Any], "ovseg evaluate", "Remove it to export without it.")
    if summary.get("checkpoint_sha256") != digest:
        return None
    return {"of": f"{summary['images']} images of the split test", **_keep(summary)}


def read_out_of_fold_scores(
    folder: Path, member: Member, postprocessing: dict[str, Any]
) -> dict[str, Any]:
    """The scores of a cross-validation of the recipe that a network was trained with.

    For a network that was trained on all images, so that none is new to it.

    Args:
        folder: of `ovseg cross_validate`, whose split valid was evaluated.
        member: the network.
        postprocessing: of the network, with which the images must have been scored.

    Returns:
        As of `read_test_scores`.

    Raises:
        InputError: `folder` is no cross-validation, was not evaluated since, or has other settings,
            images or post-processing.
    """
    run = RunFolder.of_checkpoint(member.path)
    path = RunFolder(folder).cross_validation
    remedy = "Name a folder that ovseg cross_validate wrote."
    if not path.is_file():
        raise InputError(f"{folder} is no cross-validation: there is no {path}. {remedy}")
    settings = read_json(path, CrossValidationFile, "ovseg cross_validate", remedy)
    command = f"ovseg evaluate --run {folder} --split valid"
    path = RunFolder(folder).evaluation("valid") / "summary.json"
    if not path.is_file():
        raise InputError(f"{folder} has no scores out of fold yet. Make them: {command}")
    remedy = f"Score again: {command} --overwrite"
    summary = read_json(path, dict[str, Any], "ovseg evaluate", remedy)
    members = read_members(folder)
    digest = checkpoint_digest(*[entry.path for entry in members])
    if summary.get("checkpoint_sha256") != digest:
        raise InputError(f"{path} is of other networks than those of {folder}. {remedy}")

    config = read_yaml(run.config)
    if not isinstance(config, dict):
        raise InputError(f"{run.config} is not the configuration that ovseg train wrote there.")
    changed = changed_settings(_recipe(settings["config"]), _recipe(config))
    if changed:
        raise InputError(
            f"The networks of {folder} were trained with other settings than {run.path}, so their "
            f"scores say nothing of it: {changed}."
        )
    if any(entry.digests != member.digests for entry in members):
        raise InputError(
            f"The networks of {folder} were trained with other images than {run.path}, so their "
            "scores say nothing of it."
        )
    if summary["postprocessing"] != postprocessing:
        raise InputError(
            f"{path} was scored with {summary['postprocessing']}, but {run.path} has "
            f"{postprocessing}. Give both the same post-processing. {remedy}"
        )
    of = (
        f"{summary['images']} images, each scored by the one of {len(members)} networks of the "
        "same recipe that was not trained on it (cross-validation)"
    )
    if member.data.get("train_on_valid"):
        of += "; this network was trained on all of them"
    return {"of": of, **_keep(summary)}


def _recipe(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that make a network what it is, by dotted keys."""
    recipe = {}
    for key, value in flatten(config).items():
        if not any(f"{key}.".startswith(f"{name}.") for name in NO_PART_OF_THE_RECIPE):
            recipe[key] = value
    return recipe


def _keep(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary[name] for name in KEPT}
