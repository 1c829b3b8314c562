"""The registry of architectures: a new one is one file, one line here and one YAML."""

import importlib

from torch import nn

from ovseg.core.registry import check_arguments, choose

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
    "smp": ("ovseg.models.smp", "SmpNetwork"),
}


def find_architecture(arch: object) -> type[nn.Module]:
    """The class of an architecture.

    Args:
        arch: a name of `list_models()`.

    Raises:
        InputError: there is no such architecture.
    """
    module, name = choose("arch", arch, ARCHITECTURES)
    return getattr(importlib.import_module(module), name)


def build_model(arch: str, **arch_args: object) -> nn.Module:
    """A network by name: plain pixels (N, 3, H, W), 0..255 RGB, to logits (N, classes, H, W).

    Args:
        arch: a name of `list_models()`.
        arch_args: constructor arguments of that architecture.

    Raises:
        InputError: unknown architecture or argument, or a value that gives no network.
    """
    architecture = find_architecture(arch)
    check_arguments(f"arch {arch}", architecture, arch_args)
    return architecture(**arch_args)


def list_models() -> list[str]:
    """Names of all architectures."""
    return list(ARCHITECTURES)
