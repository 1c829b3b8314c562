"""A trained run as files for other programs, each compared with torch before it is kept."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ovseg import __version__
from ovseg.core.checkpoints import Member, checkpoint_digest, read_checkpoint, read_members
from ovseg.core.errors import InputError, first_five
from ovseg.core.files import atomic_dir, check_output_dir, write_json
from ovseg.core.limits import MAX_CONFIG_BYTES
from ovseg.core.registry import choose
from ovseg.core.runs import DESCRIPTION_FILE, RunFolder
from ovseg.core.schema import read_json, read_text
from ovseg.data.geometry import place
from ovseg.inference.agreement import Agreement, choose_images, compare
from ovseg.inference.engine_choice import TOLERANCE, is_close
from ovseg.inference.export_card import CARD_FILE, write_card
from ovseg.inference.export_scores import read_out_of_fold_scores, read_test_scores
from ovseg.inference.labels import to_dict
from ovseg.inference.model_files import FORMATS, OUTPUT, ModelFormat, open_model
from ovseg.inference.predictor import LoadedNetwork, Predictor

# Of a file of less than float32: the least Dice between its mask and torch's of an image ...
LEAST_DICE_OF_FLOAT16 = 0.99
# ... and the largest loss of mean Dice, about that of another seed (docs/recipes.md).
LARGEST_LOSS_OF_INT8 = 0.01
CALIBRATED = 64  # validation images on which the ranges of int8 are measured


def export_run(
    run: str | Path,
    output: Path | None = None,
    format: str = "onnx",
    precision: str = "float32",
    data: Path | None = None,
    notes: Path | None = None,
    cross_validation: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a run's network, `model.json` and a model card, and compare the network with torch.

    The network takes plain pixels, uint8 (N, 3, H, W), of pictures placed in a square as `fit`
    says, and gives probabilities; one of safetensors holds the weights alone. `model.json`, which
    the file's metadata repeat, says how these become the labels that `ovseg infer` writes.

    Args:
        run: run folder or checkpoint.
        output: folder to make; by default `export` in the run folder. A checkpoint outside of a run
            needs one.
        format: key of `ovseg.inference.model_files.FORMATS`.
        precision: of the weights, one that the format has.
        data: the dataset on whose validation images the file is compared and int8 is calibrated, if
            it is not the one of training. Without it phantoms are compared, and int8 is refused.
        notes: a Markdown file that the model card begins with.
        cross_validation: folder of a cross-validation of the run's recipe, whose scores out of fold
            the card has instead of the run's own on test, see
            `ovseg.inference.export_scores.read_out_of_fold_scores`.
        overwrite: replace an earlier export.

    Returns:
        The content of `model.json`, and in `agreement` also the times, which no second export
        would repeat.

    Raises:
        InputError: run, format or output can't be used, the run is an ensemble, a package is
            missing, or the file's probabilities or masks are too far from torch's.
    """
    kind: ModelFormat = choose("format", format, FORMATS)
    if precision not in kind.precisions:
        raise InputError(
            f"--format {format} has no {precision}. It has {first_five(kind.precisions)}."
        )
    run = Path(run)
    if output is None:
        output = RunFolder.of(run).export
    check_output_dir(output, overwrite, DESCRIPTION_FILE)
    text = "" if notes is None else read_text(notes, MAX_CONFIG_BYTES)
    members = read_members(run)
    if len(members) > 1:
        raise InputError(f"{run} is an ensemble of {len(members)}. Export its members one by one.")

    member = members[0]
    sample = choose_images(member, data, CALIBRATED)
    if precision == "int8" and not sample.is_real:
        raise InputError(
            f"int8 is calibrated on validation images, and the dataset of {run} is not here. Name "
            "it with --data."
        )
    predictor = Predictor.load(run, "cpu")
    network = predictor.members[0]
    description = _describe(predictor, member, run, precision, cross_validation)
    squares = [place(picture, network.image_size, network.fit) for picture in sample.pictures]

    with atomic_dir(output, overwrite, DESCRIPTION_FILE, inputs=(run,)) as folder:
        path = folder / kind.file_name
        kind.write(network.network, squares, path, description)
        opened = LoadedNetwork(
            open_model(path)[0], network.image_size, network.fit, torch.device("cpu")
        )
        agreement = compare(network, opened, predictor.postprocessing, sample)
        _refuse_difference(agreement, precision)
        description["agreement"] = agreement.without_times()
        write_json(folder / DESCRIPTION_FILE, description)
        write_card(folder / CARD_FILE, path, description, text)
    description["agreement"] = asdict(agreement)
    return description


def _describe(
    predictor: Predictor, member: Member, run: Path, precision: str, cross_validation: Path | None
) -> dict[str, Any]:
    """What a program must know to make labels with the network, and where it is from."""
    settings = read_checkpoint(member.path)["hyper_parameters"]
    network = predictor.members[0]
    digest = checkpoint_digest(member.path)
    folder = RunFolder.of(run)
    postprocessing = to_dict(predictor.postprocessing)
    training = {}
    scores = None
    if folder.path.is_dir():  # a checkpoint that was copied elsewhere has no run
        training = _read_training(folder)
    if cross_validation is not None:
        scores = read_out_of_fold_scores(cross_validation, member, postprocessing)
    elif folder.path.is_dir():
        scores = read_test_scores(folder, digest)
    return {
        "made_by": f"ovseg {__version__}",
        "checkpoint_sha256": digest,
        "dataset": Path(member.data["root"]).name,
        "network": {"arch": settings["arch"], "arch_args": settings.get("arch_args") or {}},
        "precision": precision,
        "input": {
            "name": "image",
            "dtype": "uint8",
            "shape": ["batch", 3, "height", "width"],
            "range": "0..255, RGB",
        },
        "output": {"name": OUTPUT, "shape": ["batch", "classes", "height", "width"]},
        "image_size": network.image_size,
        "fit": network.fit,
        "categories": ["background", *(predictor.categories or ["lesion"])],
        "postprocessing": postprocessing,
        "training": training,
        "scores": scores,
    }


def _read_training(run: RunFolder) -> dict[str, Any]:
    """Of the run's record what may leave its machine; empty where there is no record."""
    if not run.record.is_file():
        return {}
    record = read_json(run.record, dict[str, Any], "ovseg", "Remove it to export without it.")
    return {
        "command": _without_folders(record["command"]),
        "started": record["started"],
        "data_sha256": record["data"]["sha256"],
        "versions": record["versions"],
    }


def _without_folders(command: str) -> str:
    """A command line in which paths are file names: a folder may name a person or a hospital."""
    words = []
    for word in shlex.split(command):
        option, equals, value = word.rpartition("=")
        words.append(f"{option}{equals}{Path(value).name}" if "/" in value else word)
    return shlex.join(words)


def _refuse_difference(agreement: Agreement, precision: str) -> None:
    """Raise InputError where a file is too far from torch; NaN is."""
    if precision == "float32" and not is_close(agreement.difference):
        raise InputError(
            f"The file is {agreement.difference:.2g} off torch's probabilities on "
            f"{agreement.images}, expected {TOLERANCE}."
        )
    if precision == "float16" and not agreement.dice_between_masks >= LEAST_DICE_OF_FLOAT16:
        raise InputError(
            f"The file's masks have a Dice of {agreement.dice_between_masks:.4f} with torch's on "
            f"one of {agreement.images}, expected {LEAST_DICE_OF_FLOAT16}. Export float32."
        )
    loss = agreement.dice - agreement.dice_of_file
    if precision == "int8" and not loss <= LARGEST_LOSS_OF_INT8:
        raise InputError(
            f"int8 lowers the mean Dice on {agreement.images} by {loss:.4f}, expected at most "
            f"{LARGEST_LOSS_OF_INT8}. Export float32."
        )
