"""The folders of the checkout, and what several tests check or make alike."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ovseg.data.datamodule import OvarianTumorDataModule

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


def make_data(root: Path, **options: object) -> OvarianTumorDataModule:
    """A data module of 48 x 48 pixels, batches of 4, no workers."""
    settings = {"image_size": 48, "batch_size": 4, "num_workers": 0, **options}
    return OvarianTumorDataModule(str(root), **settings)


def tiny_settings(max_epochs: int, arch_args: dict | None = None, **data: object) -> dict[str, Any]:
    """A configuration of `train` that takes seconds, without a dataset's folder.

    Args:
        max_epochs: of the trainer.
        arch_args: more arguments of the network, or other ones.
        data: more settings of the data, or other ones.
    """
    network = {"base_filters": 2, "base_kernel": 3, "num_layers": 2, **(arch_args or {})}
    return {
        "model": {"arch_args": network, "optimizer_args": {"lr": 0.003}},
        "data": {"image_size": 32, "batch_size": 4, "num_workers": 0, **data},
        "trainer": {"max_epochs": max_epochs, "accelerator": "cpu", "num_sanity_val_steps": 0},
        "snapshots": {"num_infer_images": 0},
        "evaluate_test": False,
    }


def assert_keras_norms(network: nn.Module) -> None:
    """All batch normalisations have Keras' constants."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def assert_glorot_uniform(layers: Iterable[nn.Conv2d | nn.ConvTranspose2d]) -> None:
    """The weights of the large layers, of which there are several, fill Glorot's interval."""
    checked = 0
    for layer in layers:
        if layer.weight.numel() > 5000:
            area = layer.kernel_size[0] ** 2
            limit = (6 / (area * (layer.in_channels + layer.out_channels))) ** 0.5
            assert layer.weight.abs().max().item() == pytest.approx(limit, rel=0.01)
            checked += 1
    assert checked > 5
