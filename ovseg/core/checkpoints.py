"""Which checkpoints a run stands for, and what they say about themselves.

An ensemble is a run of several checkpoints: a folder with `ensemble.json`,
`{"members": ["relative/path/of/run", ...]}`. `evaluate`, `infer` and `postprocess` take it as a
run folder and average the probabilities of its members.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta, Struct, field

from ovseg.core.errors import InputError, first_five
from ovseg.core.files import file_digest
from ovseg.core.limits import IMAGE_SIZES, MAX_CLASSES, MAX_MEMBERS
from ovseg.core.runs import RunFolder, refuse_export
from ovseg.core.schema import find_problem, is_plain, read_json
from ovseg.core.trust import FLAG, is_trusted

# Arguments of the data module that decide how an image becomes a square.
PLACEMENT = ("image_size", "fit", "mask_threshold", "mask_blur", "invert_masks")
# Arguments that decide neither that nor which images are used.
INDIFFERENT = (
    "batch_size",
    "num_workers",
    "augmentation",
    "augmentation_args",
    "steps_per_epoch",
    "shuffle",
    "drop_last",
    "seed",
    "mini_test",
    "phantoms",
    "cache",
    "category_names",
)
# The sections from which Lightning builds the task and the data module.
HYPER_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")
NETWORK = "network."  # how names of the network's tensors begin in a checkpoint
DATA_STATE = "OvarianTumorDataModule"  # the key of the data module's own state

Count = Annotated[int, Meta(ge=0)]
Classes = Annotated[int, Meta(ge=1, le=MAX_CLASSES)]
ImageSize = Annotated[int, Meta(ge=IMAGE_SIZES[0], le=IMAGE_SIZES[1])]


class EnsembleFile(Struct):
    """`ensemble.json`."""

    members: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]


class ArchArgs(Struct):
    """Of the arguments of an architecture, the one that all have."""

    classes: Classes = 1


class TaskSettings(Struct):
    """What the network needs; its own constructor checks the arguments of an architecture."""

    arch: str
    arch_args: ArchArgs | None = None
    loss_args: dict[str, Any] | None = None
    optimizer_args: dict[str, Any] | None = None
    scheduler_args: dict[str, Any] | None = None


class DataSettings(Struct):
    """What a prediction needs; the data module's constructor checks the others."""

    root: str
    image_size: ImageSize
    fit: str


class Progress(Struct):
    """Numbers of epochs or batches."""

    ready: Count
    processed: Count


class EpochProgress(Struct):
    current: Progress


class BatchProgress(Struct):
    current: Progress
    is_last_batch: bool


class FitLoop(Struct):
    epoch_progress: EpochProgress
    batch_progress: BatchProgress = field(name="epoch_loop.batch_progress")
    counters: dict[str, Count] = field(name="epoch_loop.state_dict", default_factory=dict)


class Loops(Struct):
    fit_loop: FitLoop


class DataState(Struct):
    """What the data module keeps in a checkpoint."""

    categories: Annotated[list[str], Meta(max_length=MAX_CLASSES)] = []
    held_out: str | None = None


class CheckpointFile(Struct):
    """What ovseg reads of a checkpoint itself; Lightning restores the rest in a resume."""

    state_dict: dict[str, torch.Tensor]
    hyper_parameters: TaskSettings
    datamodule_hyper_parameters: DataSettings
    loops: Loops
    global_step: Count
    callbacks: dict[str, Any] = {}
    # What Lightning calls the arguments of a constructor; with another name it would pass all
    # hyper-parameters as that one argument.
    hparams_name: Literal["kwargs"] = "kwargs"
    data_state: DataState = field(name="OvarianTumorDataModule", default_factory=DataState)


def find_checkpoint(run: Path) -> Path:
    """The checkpoint of a run folder, see `RunFolder.find_checkpoint`, or the .ckpt itself.

    Raises:
        InputError: there is none, or this is an exported file or its folder.
    """
    path = Path(run)
    refuse_export(path)
    if path.is_file():
        return path
    return RunFolder(path).find_checkpoint()


def find_checkpoints(run: Path) -> list[Path]:
    """The checkpoint of a run, or the checkpoints of the members of an ensemble.

    Raises:
        InputError: there is none, or `ensemble.json` names no members, too many, or one outside of
            its folder in a command that does not trust it (see `ovseg.core.trust`).
    """
    path = RunFolder(Path(run)).ensemble
    if not path.is_file():
        return [find_checkpoint(run)]
    expected = '{"members": ["path of a run, relative to this file", ...]}'
    remedy = f"Expected {expected}. Correct or remove it."
    content = read_json(path, EnsembleFile, "ovseg cross_validate", remedy)
    members = content["members"]
    if len(members) > MAX_MEMBERS:
        raise InputError(
            f"{path} has {len(members)} members, expected at most {MAX_MEMBERS}: all networks are "
            "in memory at once. Leave members out."
        )
    return [find_checkpoint(path_inside(path, member)) for member in members]


def path_inside(path: Path, name: str) -> Path:
    """The file or folder that a JSON file names, which must be in the JSON file's folder.

    Args:
        path: of the JSON file.
        name: relative to its folder.

    Raises:
        InputError: it is elsewhere, links followed, and the command does not trust it.
    """
    folder = path.parent
    if "\0" not in name and (folder / name).resolve().is_relative_to(folder.resolve()):
        return folder / name
    if is_trusted():
        return folder / name
    raise InputError(
        f"{path} names {name!r}, which is not inside {folder}. If you trust the file, add {FLAG}; "
        "else correct it."
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as a dict, without running code from the file.

    Its tensors are read from the file when they are used, so settings and progress of a checkpoint
    of 1.5 GB are read at once. Copy a tensor that is to outlive the file.

    Raises:
        InputError: it is missing, truncated or not a checkpoint of ovseg, larger than its file
            once unpacked, or it has hyper-parameters that could run code.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no checkpoint {path}. Check the path.")
    problem = _find_archive_problem(path)
    checkpoint: Any = None
    if not problem:
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        # A damaged pickle raises whatever its instructions make of what they find.
        except Exception as error:
            problem = type(error).__name__
    if not problem:
        problem = find_problem(checkpoint, CheckpointFile)
    if problem:
        raise InputError(f"{path} is not a whole checkpoint of ovseg ({problem}).")
    for section in HYPER_PARAMETERS:
        # Lightning would build the network by the function that such a name holds.
        private = [name for name in checkpoint[section] if str(name).startswith("_")]
        if not private and is_plain(checkpoint[section]):
            continue
        found = first_five(private) or "objects instead of plain values"
        raise InputError(
            f"{path} has {section} that ovseg never writes: {found}. They can "
            "run code, so it is not loaded. Use a checkpoint from a source that you trust."
        )
    return checkpoint


def _find_archive_problem(path: Path) -> str:
    """Why a file can't be what torch saves: a zip archive without compression; else empty.

    So nothing of it becomes larger in memory than on the disk.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        return str(error)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return "it is compressed, as torch never does"
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > Path(path).stat().st_size:
        return f"it is {unpacked:,} bytes unpacked, more than the file"
    return ""


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
        root: the absolute path of the dataset in training; None in checkpoints without it.
        digests: of the folders train and valid in training, see
            `ovseg.data.datamodule.OvarianTumorDataModule.digest`; None in checkpoints without them.
    """

    path: Path
    data: dict[str, Any]
    classes: int
    categories: list[str]
    epoch: int
    held_out: str | None
    root: str | None = None
    digests: dict[str, str] | None = None


def network_state(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of the network alone, by their names in it, see `read_checkpoint`."""
    state = {}
    for name, tensor in checkpoint["state_dict"].items():
        if name.startswith(NETWORK):
            state[name.removeprefix(NETWORK)] = tensor
    return state


def describe_misfits(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> str:
    """The first five tensors that are missing, left over or of another shape; empty for none.

    Args:
        own: of a network, by name.
        given: to be loaded into it.
    """
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is left over" for name in given if name not in own]
    for name, tensor in own.items():
        if name in given and given[name].shape != tensor.shape:
            shape = tuple(given[name].shape)
            problems.append(f"{name} is {shape}, expected {tuple(tensor.shape)}")
    return first_five(problems)


def fill_network(network: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load tensors of a file into a network, or a task; every one must be there with its shape.

    Args:
        network: it is changed in place.
        state: by their names in the network.
        path: of the file, for the message.

    Raises:
        InputError: tensors are missing, left over or of another shape.
    """
    problems = describe_misfits(network.state_dict(), state)
    if problems:
        raise InputError(
            f"{path} holds other weights than its network has: {problems}. It is damaged, or was "
            "written by another version. Use another file."
        )
    network.load_state_dict(state)


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
        root=state.get("root"),
        digests=digests_of(checkpoint),
    )


def find_dataset(member: Member) -> str:
    """The dataset that a checkpoint was trained on, by the path of that time.

    A relative path starts at the current folder; if there is none, the absolute path counts.

    Raises:
        InputError: it is in neither place.
    """
    named = str(member.data["root"])
    looked_for = list(dict.fromkeys([str(Path(named).absolute()), member.root or named]))
    for path in (named, *looked_for):
        if Path(path).is_dir():
            return path
    raise InputError(
        f"There is no dataset folder {named}, on which {member.path} was trained. Looked for: "
        f"{first_five(looked_for)}. Name the dataset with --data."
    )


def dataset_folder(member: Member) -> Path | None:
    """The dataset that a checkpoint was trained on, whatever it was called; None if it is gone."""
    try:
        return Path(find_dataset(member)).resolve()
    except InputError:
        return None


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
        different = _compare_data(first, member)
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


def is_cross_validation(members: list[Member]) -> bool:
    """Whether members were trained on folds of one dataset, each with another one held out.

    Then each image of `valid` is held out by at most one of them, which can score it.
    """
    folds = {member.data.get("fold") for member in members}
    if len(members) < 2 or None in folds or len(folds) < len(members):
        return False
    first = members[0]
    for member in members[1:]:
        different = set(_compare_data(first, member)) - {*INDIFFERENT, "fold"}
        if different:
            return False
    return True


def _compare_data(first: Member, other: Member) -> dict[str, str]:
    """The arguments that differ: name -> `data.NAME VALUE and OTHER VALUE`."""
    different = {}
    for name in {**first.data, **other.data}:
        value = first.data.get(name)
        other_value = other.data.get(name)
        # What an older checkpoint does not have was off.
        if (value or None) != (other_value or None):
            different[name] = f"data.{name} {value} and {other_value}"
    if "root" in different:  # each can name one folder in its own way
        folder = dataset_folder(first)
        if folder is not None and folder == dataset_folder(other):
            del different["root"]
    return different
