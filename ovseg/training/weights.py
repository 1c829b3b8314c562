"""A new training from the weights of another, such as for fine-tuning."""

from pathlib import Path

from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from ovseg.core.checkpoints import (
    describe_misfits,
    epochs_done,
    find_checkpoint,
    network_state,
    read_checkpoint,
)
from ovseg.core.errors import InputError, first_five


def load_weights(network: nn.Module, run: str, arch: str, classes: int) -> None:
    """Fill a network with the weights of a checkpoint, and say so in a line.

    Every tensor must be there with its shape. Only those of the head, where the checkpoint is of
    another number of classes, stay as they are.

    Args:
        network: it is changed in place.
        run: a checkpoint, or a run folder.
        arch: the network's architecture.
        classes: its number of output channels.

    Raises:
        InputError: no such checkpoint, one of another architecture, or tensors that are missing,
            left over or of another shape.
    """
    path = find_checkpoint(Path(run))
    checkpoint = read_checkpoint(path)
    trained = checkpoint["hyper_parameters"]
    if trained["arch"] != arch:
        raise InputError(
            f"model.weights {path} are of the architecture {trained['arch']}, but model.arch is "
            f"{arch}. Set it to {trained['arch']}, or choose other weights."
        )
    trained_classes = (trained.get("arch_args") or {}).get("classes", 1)
    own = network.state_dict()
    given = network_state(checkpoint)
    head = []
    for name, tensor in own.items():
        if name in given and _is_of_head(tensor, given[name], classes, trained_classes):
            head.append(name)
            given[name] = tensor
    _check_tensors(path, own, given)
    network.load_state_dict(given)

    left = ""
    if head:
        left = f" {first_five(head)} stay as initialised, for {classes} classes."
    epochs = epochs_done(checkpoint)
    rank_zero_info(f"The network starts from {path}, trained for {epochs} epochs.{left}")


def _is_of_head(own: Tensor, given: Tensor, classes: int, trained_classes: int) -> bool:
    """Whether two tensors differ in their first axis alone, in that it counts the classes."""
    if classes == trained_classes or own.dim() == 0 or given.dim() == 0:
        return False
    counts = (own.shape[0], given.shape[0])
    return counts == (classes, trained_classes) and own.shape[1:] == given.shape[1:]


def _check_tensors(path: Path, own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    problems = describe_misfits(own, given)
    if problems:
        raise InputError(
            f"model.weights {path} do not fit the network: {problems}. Set "
            "model.arch_args to those of its run's config.yaml, or choose other weights."
        )
