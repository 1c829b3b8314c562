"""Whether an EfficientNet was trained behind Keras' division by ImageNet's deviations.

Keras 2.9 and later divide the normalised pixels once more where an EfficientNet starts from
ImageNet's weights. The division is a constant of the graph, so weights alone don't show it.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import IMAGENET_DEFAULT_STD

from ovseg.baseline.keras_reader import read_keras_graph, read_keras_layers
from ovseg.core.registry import fill_defaults
from ovseg.models import find_architecture
from ovseg.models.backbones import EFFICIENTNETS

KEY = "imagenet_rescaling"


def settle_rescaling(model: dict[str, Any], weights: Path | None) -> list[tuple[str, str, str]]:
    """Set `imagenet_rescaling` of a network that has it as a file of weights was trained.

    Args:
        model: `arch` and `arch_args` of the experiment; it is changed.
        weights: the baseline's file; None for none.

    Returns:
        The row of the table of keys that says which was taken and why; none for another network.

    Raises:
        InputError: the file is no Keras file.
    """
    defaults = fill_defaults(find_architecture(model["arch"]), model["arch_args"])
    if KEY not in defaults:
        return []
    if "backbone" in defaults and defaults["backbone"] not in EFFICIENTNETS:
        return []
    found = None
    # The configuration of a backbone says whether it starts from ImageNet's weights.
    known = "as [model] weights" if KEY in model["arch_args"] else "the default"
    reason = f"{known}, as there is nothing that shows it"
    if weights is not None:
        found = _find_in_graph(weights)
        reason = "as in the graph of the file"
        if found is None and _has_constants_of_imagenet(weights):
            found = True
            reason = (
                "as Keras 2.9 and later do with ImageNet's weights, which the file started from"
            )
        elif found is None:
            reason = f"{known}, as the file has no graph and not ImageNet's constants"
    if found is None:
        found = bool(defaults[KEY])
    model["arch_args"][KEY] = found
    name = weights.name if weights is not None else "(none)"
    return [("weights", name, f"model.arch_args.{KEY}: {str(found).lower()}, {reason}")]


def _find_in_graph(weights: Path) -> bool | None:
    """Whether anything but the stem follows the normalisation; None without a graph."""
    for name, inputs in read_keras_graph(weights).items():
        if re.search(r'"normalization(_\d+)?"', inputs):
            return not name.startswith("stem_conv")
    return None


def _has_constants_of_imagenet(weights: Path) -> bool:
    """Whether the normalisation has ImageNet's deviations for variances, as Keras' weights have."""
    for layer in read_keras_layers(weights):
        if layer.stem == "normalization":
            arrays = [array for _, array in layer.weights if array.shape == (3,)]
            return any(np.allclose(array, IMAGENET_DEFAULT_STD, atol=1e-4) for array in arrays)
    return False
