"""The whole way from the baseline's files to its numbers: configuration, network, weights, probabilities.

`python -m pytest tests/test_keras_parity.py -s` prints the largest difference of each network.
"""

import runpy

import numpy as np
import pytest
import torch

from ovseg.baseline.config import read_baseline_config
from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.models import build_model

FOLDERS = (
    "unet9",
    "unet_mish_bn",
    "attention",
    "multires",
    "unet3plus",
    "swin",
    "efficient",
    "deeplab",
)


@pytest.mark.parametrize(
    ("name", "weights"),
    [*((name, "best_model.h5") for name in FOLDERS), ("unet9", "weights_only.h5")],
)
def test_probabilities_equal_those_of_keras(name, weights, shared_file, tmp_path):
    folder = shared_file(f"keras_fixtures/{name}")
    path = folder / weights
    if not path.exists():  # two folders only tell how to make it
        path = tmp_path / weights
        runpy.run_path(str(folder.parent / "make_h5.py"))["main"](str(folder), str(path))
    model = read_baseline_config(folder / "train_eval_infer.config")["model"]
    network = build_model(model["arch"], **model["arch_args"]).eval()
    load_keras_weights(network, path)
    arrays = np.load(folder / "io.npz")
    with torch.inference_mode():
        probs = (
            network(torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2))
            .sigmoid()
            .permute(0, 2, 3, 1)
            .numpy()
        )
    difference = np.abs(probs - arrays["y"]).max()
    print(f"\n{name}, {weights}: largest difference of probabilities {difference:.1e}")
    assert difference <= 1e-5
