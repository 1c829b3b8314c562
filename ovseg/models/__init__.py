"""The registry of architectures: a new one is one file, one line here and one YAML."""

import importlib
import inspect

import torch
from torch import nn

from ovseg.core.errors import InputError
from ovseg.core.limits import MAX_PARAMETERS
from ovseg.core.registry import check_arguments, choose, fill_defaults
from ovseg.core.trust import import_own

# Name -> module and class. They are imported when they are asked for: timm and
# segmentation-models-pytorch take longer to import than some networks to predict a picture.
ARCHITECTURES = {
    "flexible_unet": ("ovseg.models.unet", "FlexibleUNet"),
    "attention_unet": ("ovseg.models.attention_unet", "AttentionUNet"),
    "multires_unet": ("ovseg.models.multires_unet", "MultiResUNet"),
    "unet3plus": ("ovseg.models.unet3plus", "UNet3Plus"),
    "swin_unet": ("ovseg.models.swin_unet", "SwinUNet"),
    "efficient_unet": ("ovseg.models.efficient_unet", "EfficientUNet"),
    "deeplabv3plus": ("ovseg.models.deeplabv3plus", "DeepLabV3Plus"),
    "transunet": ("ovseg.models.transunet", "TransUNet"),
    "u2net": ("ovseg.models.u2net", "U2Net"),
    "sharp_unet": ("ovseg.models.sharp_unet", "SharpUNet"),
    "efficientnet_b7_unet": ("ovseg.models.efficientnet_b7_unet", "EfficientNetB7UNet"),
    "smp": ("ovseg.models.smp", "SmpNetwork"),
    "ds2net": ("ovseg.models.ds2net", "DS2Net"),
}


def find_architecture(arch: object) -> type[nn.Module]:
    """The class of an architecture.

    Args:
        arch: a name of `list_models()`, or `package.module.Class` of your own, see
            `ovseg.core.trust`.

    Raises:
        InputError: there is no such architecture, or it is not trusted.
    """
    if isinstance(arch, str) and "." in arch:
        own = import_own("model.arch", arch)
        if not inspect.isclass(own) or not issubclass(own, nn.Module):
            raise InputError(f"model.arch {arch} is no network, expected a class of nn.Module.")
        return own
    module, name = choose("arch", arch, ARCHITECTURES)
    return getattr(importlib.import_module(module), name)


def build_model(arch: str, **arch_args: object) -> nn.Module:
    """A network by name: plain pixels (N, 3, H, W), 0..255 RGB, to logits (N, classes, H, W).

    Args:
        arch: see `find_architecture`.
        arch_args: constructor arguments of that architecture.

    Raises:
        InputError: unknown architecture or argument, or a value that gives no network.
    """
    architecture = find_architecture(arch)
    check_arguments(f"arch {arch}", architecture, arch_args)
    if arch in ARCHITECTURES and not _is_within_defaults(architecture, arch_args):
        _check_size(arch, architecture, arch_args)
    return architecture(**arch_args)


def _is_within_defaults(architecture: type[nn.Module], arch_args: dict[str, object]) -> bool:
    """Whether no number is above its default, so the network is no larger than by default."""
    defaults = fill_defaults(architecture, None)
    for name, value in arch_args.items():
        if value is None or isinstance(value, bool | float | str):
            continue
        default = defaults.get(name)
        if not isinstance(value, int) or not isinstance(default, int) or value > default:
            return False
    return True


def _check_size(arch: str, architecture: type[nn.Module], arch_args: dict[str, object]) -> None:
    """Refuse a network that would fill the memory, before it is made.

    It is built without memory for its weights, which takes some hundredths of a second.
    """
    if "encoder_weights" in arch_args:
        arch_args = {**arch_args, "encoder_weights": None}
    try:
        with torch.device("meta"):
            network = architecture(**arch_args)
    except InputError:
        return  # smp's transformers compute with their sizes; what is wrong else is said later
    # Sizes beyond 64 bits.
    except (RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"arch {arch} can't be built with {arch_args}: {reason}.") from None
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if parameters > MAX_PARAMETERS:
        raise InputError(
            f"arch {arch} with {arch_args} has {parameters:,} parameters, expected at most "
            f"{MAX_PARAMETERS:,}. Lower them."
        )


def list_models() -> list[str]:
    """Names of all architectures."""
    return list(ARCHITECTURES)
