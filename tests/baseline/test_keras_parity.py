"""Probabilities and training steps of our networks equal those that Keras computed.

`python -m pytest tests/baseline/test_keras_parity.py -s` prints the largest difference of each
network.
"""

import json

import numpy as np
import pytest
import torch
from torch import nn

from ovseg.baseline.config import read_baseline_config
from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.metrics import dice_coef
from ovseg.models import build_model
from ovseg.training.losses import build_loss
from ovseg.training.optim import KerasAdam

CASES = [
    ("unet9", "best_model.h5"),
    ("unet_mish_bn", "best_model.h5"),
    ("attention", "best_model.h5"),
    ("multires", "best_model.h5"),
    ("unet3plus", "best_model.h5"),
    ("swin", "best_model.h5"),
    ("efficient", "best_model.h5"),
    ("deeplab", "best_model.h5"),
    ("transunet", "best_model.h5"),
    ("u2net", "best_model.h5"),
    ("sharpunet", "best_model.h5"),
    ("efficientnetb7", "best_model.h5"),
    ("unet9", "weights_only.h5"),
]


def probabilities(network, image: np.ndarray) -> np.ndarray:
    """What a network makes of images as Keras has them: (N, H, W, 3) to (N, H, W, 1)."""
    with torch.inference_mode():
        logits = network(torch.from_numpy(image).permute(0, 3, 1, 2))
        return logits.sigmoid().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("name", "weights"), CASES)
def test_probabilities_equal_those_of_keras(name, weights, keras_fixture):
    folder, path = keras_fixture(name, weights)
    model = read_baseline_config(folder / "train_eval_infer.config")["model"]
    network = build_model(model["arch"], **model["arch_args"]).eval()
    load_keras_weights(network, path)

    arrays = np.load(folder / "io.npz")
    difference = np.abs(probabilities(network, arrays["x"]) - arrays["y"]).max()
    print(f"\n{name}, {weights}: largest difference of probabilities {difference:.1e}")
    assert difference <= 1e-5


def test_eight_training_steps_follow_keras(shared_file):
    network = build_model(
        "flexible_unet", base_filters=2, base_kernel=9, num_layers=4, dilation=3, dropout_rate=0.0
    )
    load_keras_weights(network, shared_file("keras_fixtures/unet9/best_model.h5"))
    arrays = np.load(shared_file("keras_fixtures/training/train_steps.npz"))
    content = json.loads(shared_file("keras_fixtures/training/train_steps.json").read_text())
    images = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2)
    masks = torch.from_numpy(arrays["y"]).permute(0, 3, 1, 2)
    optimizer = KerasAdam(network.parameters(), lr=0.001, eps=1e-7)
    loss_function = build_loss("bce_dice_loss")

    for step, (keras_loss, keras_dice) in enumerate(content["loss_dice_per_step"]):
        batch = slice(0, 2) if step % 2 == 0 else slice(2, 4)
        logits = network(images[batch])
        loss = loss_function(logits, masks[batch])
        dice = dice_coef(logits.detach().sigmoid(), masks[batch])
        assert loss.item() == pytest.approx(keras_loss, abs=1e-5)
        assert dice.item() == pytest.approx(keras_dice, abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(network.parameters(), 0.5)
        optimizer.step()

    assert np.abs(probabilities(network, arrays["x"]) - arrays["pred_after"]).max() < 1e-4
