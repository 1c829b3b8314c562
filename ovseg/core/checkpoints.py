"""Which checkpoints a run stands for, and what they say of themselves; an ensemble is a run of several.

A folder with `ensemble.json`, `{"members": ["relative/path/of/run", ...]}`, stands wherever a run folder does in
`evaluate`, `infer` and `postprocess`: the probabilities of its members are averaged.
"""

import hashlib
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ovseg.core.errors import InputError, first_five
from ovseg.core.runs import RunFolder

# What a data module was told that neither places images nor says which of them are used.
FREE = (
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
PLACING = ("image_size", "fit", "mask_threshold")


def find_checkpoint(run: Path) -> Path:
    """The checkpoint of a run folder, see `RunFolder.find_checkpoint`, or the .ckpt itself.

    Raises:
        InputError: there is none.
    """
    run = Path(run)
    return run if run.is_file() else RunFolder(run).find_checkpoint()


def find_checkpoints(run: Path) -> list[Path]:
    """The checkpoint of a run (see `find_checkpoint`), or those of the members that a folder's `ensemble.json` names.

    Raises:
        InputError: there is none, or the file names no members.
    """
    path = RunFolder(Path(run)).ensemble
    if not path.is_file():
        return [find_checkpoint(run)]
    try:
        members = json.loads(path.read_text(encoding="utf-8"))["members"]
    except (OSError, ValueError, KeyError, TypeError):
        members = None
    if (
        not isinstance(members, list)
        or not members
        or not all(isinstance(member, str) for member in members)
    ):
        raise InputError(
            f'{path} does not read {{"members": ["path of a run, seen from here", ...]}}. Mend or remove it.'
        )
    return [find_checkpoint(path.parent / member) for member in members]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as a dict, without running code from the file.

    Raises:
        InputError: missing, truncated, not a checkpoint of ovseg, or with hyper-parameters that could run code.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no checkpoint {path}. Check the path.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        wanted = {"state_dict", "hyper_parameters", "datamodule_hyper_parameters"}
        if not wanted <= checkpoint.keys() or "arch" not in checkpoint["hyper_parameters"]:
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
    for section in ("hyper_parameters", "datamodule_hyper_parameters"):
        private = [name for name in checkpoint[section] if str(name).startswith("_")]
        if private:  # Lightning would build the network by the function that they name
            raise InputError(
                f"{path} has {section} that ovseg never writes: {first_five(private)}. They can run code, so it is "
                "not loaded. Use a checkpoint from a source that you trust."
            )
    return checkpoint


def checkpoint_digest(*paths: Path) -> str:
    """The sha256 of a checkpoint's file, in hexadecimal; of several, that of their digests in order."""
    digests = []
    for path in paths:
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
    )


@dataclass(frozen=True)
class Member:
    """What a checkpoint says of itself.

    Attributes:
        path: the checkpoint.
        data: the data module's arguments in training.
        classes: 1, or background and categories.
        categories: names of ids 1, 2, ...; empty for one class.
        epoch: number of epochs it was trained for.
        held_out: which images its fold held out, see `ovseg.data.tree.DatasetTree.held_out`; None without folds.
    """

    path: Path
    data: dict[str, Any]
    classes: int
    categories: list[str]
    epoch: int
    held_out: str | None


def read_member(path: Path) -> Member:
    """One checkpoint, see `read_checkpoint`."""
    checkpoint = read_checkpoint(path)
    classes = (checkpoint["hyper_parameters"].get("arch_args") or {}).get("classes", 1)
    state = checkpoint.get("OvarianTumorDataModule", {})
    epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return Member(
        path,
        checkpoint["datamodule_hyper_parameters"],
        classes,
        state.get("categories", []),
        epoch,
        state.get("held_out"),
    )


def read_members(run: Path) -> list[Member]:
    """The checkpoints of `find_checkpoints`, which must speak of the same classes.

    Raises:
        InputError: one can't be read, or members differ in their classes or the names of their categories.
    """
    members = [read_member(path) for path in find_checkpoints(run)]
    for member in members:
        if (member.classes, member.categories) != (members[0].classes, members[0].categories):
            kinds = [
                f"{first_five(m.categories) or 'lesion'} ({m.path})" for m in (members[0], member)
            ]
            raise InputError(
                f"The members of {run} were trained for different classes: {kinds[0]}, and {kinds[1]}. "
                f"Leave members out of its ensemble.json."
            )
    return members


def check_evaluable(members: list[Member], split: str, root: Path | None) -> None:
    """Refuse members that can't be scored together on one batch of squares, or not on images new to all of them.

    Raises:
        InputError: they place images otherwise, their datasets differ and `root` names none, or `split` is not `test`
            and they were trained on different images.
    """
    first = members[0]
    for member in members[1:]:
        names = [
            name
            for name in {**first.data, **member.data}
            if first.data.get(name) != member.data.get(name)
        ]
        told = {
            name: f"data.{name} {first.data.get(name)} and {member.data.get(name)}"
            for name in names
        }
        placing = [told[name] for name in names if name in PLACING]
        where = f"{first.path} and {member.path}"
        if placing:
            raise InputError(
                f"{where} have {first_five(placing)}, so they have no common size to be scored at. Evaluate each "
                "alone; infer takes them together."
            )
        if "root" in names and root is None:
            raise InputError(f"{where} have {told['root']}. Name the dataset to score with --data.")
        using = [told[name] for name in names if name not in (*PLACING, *FREE)]
        if split != "test" and using:
            raise InputError(
                f"{where} have {first_five(using)}, so one may have seen {split} images of the other in training. "
                "Evaluate the ensemble on test, or each member alone."
            )
