"""Which checkpoints a run stands for, and what they say about themselves.

An ensemble is a run of several checkpoints: a folder with `ensemble.json`,
`{"members": ["relative/path/of/run", ...]}`. `evaluate`, `infer` and `postprocess` take it as a
run folder and average the probabilities of its members.
"""

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ovseg.core.errors import InputError, first_five
from ovseg.core.files import file_digest
from ovseg.core.runs import RunFolder

# Arguments of the data module that decide how an image becomes a square.
PLACEMENT = ("image_size", "fit", "mask_threshold")
# Arguments that decide neither that nor which images are used.
INDIFFERENT = (
    "batch_size",
    "num_workers",
    "augmentation",
    "shuffle",
    "drop_last",
    "seed",
    "mini_test",
    "phantoms",
    "cache",
)
# The sections from which Lightning builds the task and the data module.
HYPER_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")
DATA_STATE = "OvarianTumorDataModule"  # the key of the data module's own state


def find_checkpoint(run: Path) -> Path:
    """The checkpoint of a run folder, see `RunFolder.find_checkpoint`, or the .ckpt itself.

    Raises:
        InputError: there is none.
    """
    path = Path(run)
    if path.is_file():
        return path
    return RunFolder(path).find_checkpoint()


def find_checkpoints(run: Path) -> list[Path]:
    """The checkpoint of a run, or the checkpoints of the members of an ensemble.

    Raises:
        InputError: there is none, or `ensemble.json` names no members.
    """
    path = RunFolder(Path(run)).ensemble
    if not path.is_file():
        return [find_checkpoint(run)]
    members = _read_ensemble(path)
    return [find_checkpoint(path.parent / member) for member in members]


def _read_ensemble(path: Path) -> list[str]:
    """The paths of an `ensemble.json`, relative to its folder."""
    expected = '{"members": ["path of a run, relative to this file", ...]}'
    refusal = InputError(f"{path} has other content than {expected}. Correct or remove it.")
    try:
        members = json.loads(path.read_text(encoding="utf-8"))["members"]
    except (OSError, ValueError, KeyError, TypeError):
        raise refusal from None
    if not isinstance(members, list) or not members:
        raise refusal
    for member in members:
        if not isinstance(member, str):
            raise refusal
    return members


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as a dict, without running code from the file.

    Raises:
        InputError: it is missing, truncated or not a checkpoint of ovseg, or it has
            hyper-parameters that could run code.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no checkpoint {path}. Check the path.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"state_dict", *HYPER_PARAMETERS} - checkpoint.keys()
        if missing or "arch" not in checkpoint["hyper_parameters"]:
            raise KeyError("arch")
    except (
        OSError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        KeyError,
        AttributeError,
        ValueError,
    ) as error:
        raise InputError(
            f"{path} is not a whole checkpoint of ovseg ({type(error).__name__})."
        ) from error
    for section in HYPER_PARAMETERS:
        # Lightning would build the network by the function that such a name holds.
        private = [name for name in checkpoint[section] if str(name).startswith("_")]
        if private:
            raise InputError(
                f"{path} has {section} that ovseg never writes: {first_five(private)}. They can "
                "run code, so it is not loaded. Use a checkpoint from a source that you trust."
            )
    return checkpoint


def checkpoint_digest(*paths: Path) -> str:
    """SHA-256 of a checkpoint's file, in hexadecimal.

    Of several files it is the SHA-256 of their digests, in order and separated by spaces.
    """
    digests = [file_digest(path) for path in paths]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class Member:
    """What a checkpoint says about itself.

    Attributes:
        path: the checkpoint.
        data: the data module's arguments in training.
        classes: 1, or the number of background and categories.
        categories: names of ids 1, 2, ...; empty for one class.
        epoch: number of epochs it was trained for.
        held_out: digest of the images that its fold held out, see
            `ovseg.data.tree.DatasetTree.held_out`; None without folds.
    """

    path: Path
    data: dict[str, Any]
    classes: int
    categories: list[str]
    epoch: int
    held_out: str | None


def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """How many epochs a training had done when it wrote a checkpoint, see `read_checkpoint`."""
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def digests_of(checkpoint: dict[str, Any]) -> dict[str, str] | None:
    """The digests of the folders that a training used; None where there are none."""
    return checkpoint.get(DATA_STATE, {}).get("digests")


def read_member(path: Path) -> Member:
    """One checkpoint, see `read_checkpoint`."""
    checkpoint = read_checkpoint(path)
    arch_args = checkpoint["hyper_parameters"].get("arch_args") or {}
    state = checkpoint.get(DATA_STATE, {})
    return Member(
        path=path,
        data=checkpoint["datamodule_hyper_parameters"],
        classes=arch_args.get("classes", 1),
        categories=state.get("categories", []),
        epoch=epochs_done(checkpoint),
        held_out=state.get("held_out"),
    )


def read_members(run: Path) -> list[Member]:
    """The checkpoints of `find_checkpoints`, which must have the same classes.

    Raises:
        InputError: one can't be read, or two differ in their classes or the names of categories.
    """
    members = [read_member(path) for path in find_checkpoints(run)]
    first = members[0]
    for member in members[1:]:
        if member.classes != first.classes or member.categories != first.categories:
            raise InputError(
                f"The members of {run} were trained for different classes: "
                f"{_describe_classes(first)}, and {_describe_classes(member)}. "
                "Leave members out of its ensemble.json."
            )
    return members


def _describe_classes(member: Member) -> str:
    names = first_five(member.categories) or "lesion"
    return f"{names} ({member.path})"


def check_evaluable(members: list[Member], split: str, root: Path | None) -> None:
    """Refuse members that can't be scored together on a split.

    They are scored on one batch of squares, of images that are new to all of them.

    Args:
        members: at least one.
        split: `train`, `valid` or `test`.
        root: the dataset to score; None for that of training.

    Raises:
        InputError: they place images differently, their datasets differ and `root` is None, or
            `split` is not `test` and they were trained on different images.
    """
    first = members[0]
    for member in members[1:]:
        different = _compare_data(first.data, member.data)
        both = f"{first.path} and {member.path}"
        placement = [text for name, text in different.items() if name in PLACEMENT]
        if placement:
            raise InputError(
                f"{both} have {first_five(placement)}, so they have no common size to be scored "
                "at. Evaluate each alone; infer takes them together."
            )
        if "root" in different and root is None:
            raise InputError(
                f"{both} have {different['root']}. Name the dataset to score with --data."
            )
        using = [text for name, text in different.items() if name not in INDIFFERENT]
        if split != "test" and using:
            raise InputError(
                f"{both} have {first_five(using)}, so one may have seen {split} images of the "
                "other in training. Evaluate the ensemble on test, or each member alone."
            )


def _compare_data(first: Mapping[str, object], other: Mapping[str, object]) -> dict[str, str]:
    """The arguments that differ: name -> `data.NAME VALUE and OTHER VALUE`."""
    different = {}
    for name in {**first, **other}:
        value = first.get(name)
        other_value = other.get(name)
        if value != other_value:
            different[name] = f"data.{name} {value} and {other_value}"
    return different
