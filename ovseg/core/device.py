"""The device that a command computes on."""

import torch

from ovseg.core.errors import InputError


def choose_device(device: str = "auto") -> torch.device:
    """`auto` is the GPU where there is one (CUDA, then Apple's), else the CPU; other names are torch's.

    Raises:
        InputError: torch does not know the device or it is not there.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(1, device=device).cpu() is not None and torch.device(device)
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"Device {device!r} cannot be used ({reason}). Try auto or cpu.") from None
