"""The device that a command computes on."""

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
