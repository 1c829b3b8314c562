"""What Keras needs to build the flexible UNet; `keras_unet` builds it with TensorFlow."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from ovseg.core.errors import InputError
from ovseg.core.registry import check_arguments, fill_defaults
from ovseg.models.unet import FlexibleUNet

NEEDS_TENSORFLOW = "The comparison needs TensorFlow: pip install 'ovseg[tensorflow]'."

# Keras has no choice of algorithms; its dropout is left out, for it draws other random numbers.
_TORCH_ONLY = ("classes", "dropout_rate", "convolution", "checkpointing")


def require_tensorflow() -> None:
    """Raise InputError where TensorFlow is not installed; it is not imported."""
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(NEEDS_TENSORFLOW)


def keras_unet_arguments(arch_args: Mapping[str, Any] | None, image_size: int) -> dict[str, Any]:
    """Arguments of `ovseg.baseline.keras_unet.build_keras_unet`.

    Args:
        arch_args: of the architecture flexible_unet; what is missing is its default.
        image_size: side of the squares, pixels.

    Raises:
        InputError: an unknown argument, more than one class, or a size that Keras cannot halve
            often enough.
    """
    check_arguments("arch flexible_unet", FlexibleUNet, arch_args or {})
    arguments: dict[str, Any] = fill_defaults(FlexibleUNet, arch_args)
    if arguments["classes"] != 1:
        raise InputError(
            f"model.arch_args.classes is {arguments['classes']}, but the Keras network has 1 class."
        )
    stride = 2 ** (arguments["num_layers"] - 1)
    if image_size % stride:
        raise InputError(f"--image_size {image_size} must be a multiple of {stride} for Keras.")
    for name in _TORCH_ONLY:
        del arguments[name]
    arguments["image_size"] = image_size
    return arguments
