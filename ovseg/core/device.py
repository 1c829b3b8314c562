"""The device, or the devices, that a command computes on."""

import os

import torch

from ovseg.core.errors import InputError


def choose_device(device: str = "auto") -> torch.device:
    """The device of a name.

    Args:
        device: `auto` for the GPU where there is one (CUDA, then Apple's), else the CPU; any other
            name is torch's, such as `cuda:1`.

    Raises:
        InputError: torch does not know the device, or it is not there.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        # A device may have a valid name and be absent: only using it shows that.
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"Device {device!r} cannot be used ({reason}). Try auto or cpu.") from None
    return torch.device(device)


def name_devices(device: str, count: int) -> list[str]:
    """The device of each of `count` processes, see `spread_devices`.

    Raises:
        InputError: a device cannot be used, or there are too few.
    """
    if count == 1:
        return [device]
    kind = choose_device(device)
    if kind.type == "cpu":
        return spread_devices(kind, count, os.cpu_count() or 1)
    return spread_devices(kind, count, torch.accelerator.device_count())


def spread_devices(kind: torch.device, count: int, available: int) -> list[str]:
    """The device of each of several processes.

    Args:
        kind: without a number, such as `cuda`.
        count: of processes.
        available: how many devices of this kind the machine has; of a CPU its cores.

    Returns:
        `cuda:0`, `cuda:1` and so on; `cpu` for each process on the CPU, whose cores they share.

    Raises:
        InputError: `count` is below 1 or more than there are, or `kind` is one device of several.
    """
    if count < 1:
        raise InputError(f"--devices is {count}, expected at least 1.")
    if kind.index is not None:
        raise InputError(
            f"--device {kind} is one device, but --devices asks for {count}. "
            f"Name the kind, --device {kind.type}."
        )
    if count > available:
        what = "cores" if kind.type == "cpu" else f"devices of {kind.type}"
        raise InputError(
            f"--devices is {count}, but this machine has {available} {what}. Give a smaller number."
        )
    if kind.type == "cpu":
        return ["cpu"] * count
    return [f"{kind.type}:{number}" for number in range(count)]
