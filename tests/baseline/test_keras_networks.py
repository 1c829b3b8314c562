"""Our networks equal those that Keras computes at other settings than the fixtures have.

Runs where TensorFlow is installed; `tests/keras_networks.py` builds the networks in Keras.
"""

import numpy as np
import pytest
import torch

from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.models import build_model

tensorflow = pytest.importorskip("tensorflow", reason="needs the extra [tensorflow]")
# A process can't change them once TensorFlow has computed; the benchmark's tests ask for one too.
tensorflow.config.threading.set_intra_op_parallelism_threads(1)
tensorflow.config.threading.set_inter_op_parallelism_threads(1)

SMALL = {
    "filter_num": [6, 7, 8],
    "embed_dim": 6,
    "num_mlp": 10,
    "num_heads": 2,
    "num_transformer": 1,
    "image_size": 16,
}
CASES = {
    "transunet, one level": (
        "transunet",
        {**SMALL, "filter_num": [4], "num_transformer": 2, "stack_num_down": 1},
    ),
    "transunet, batch norm, classes": (
        "transunet",
        {**SMALL, "batch_norm": True, "classes": 3, "stack_num_up": 3},
    ),
    "transunet, strided": ("transunet", {**SMALL, "pool": False, "num_transformer": 0}),
    "transunet, strided, batch norm": (
        "transunet",
        {**SMALL, "pool": False, "batch_norm": True, "in_channels": 1},
    ),
    "u2net, one level": ("u2net", {"image_size": 16, "base_filters": 5, "num_layers": 1}),
    "u2net, classes": (
        "u2net",
        {"image_size": 32, "base_filters": 6, "num_layers": 2, "classes": 3, "in_channels": 2},
    ),
    "sharp_unet, even kernels": (
        "sharp_unet",
        {
            "image_size": 16,
            "filters": [1, 4],
            "max_filter": 6,
            "base_ksize": (2, 4),
            "dilation": (3, 1),
        },
    ),
    "sharp_unet, classes": (
        "sharp_unet",
        {
            "image_size": 24,
            "filters": [4, 3, 2],
            "max_filter": 7,
            "base_ksize": (5, 3),
            "dilation": (1, 2),
            "classes": 4,
            "in_channels": 1,
        },
    ),
    "sharp_unet, one level": (  # its place makes the file an .h5
        "sharp_unet",
        {
            "image_size": 16,
            "filters": [3],
            "max_filter": 5,
            "base_ksize": (3, 3),
            "dilation": (1, 1),
        },
    ),
}
# The kinds of backbones, small ones of few levels; VGG16 with a level below it.
BELOW = {"filter_num": [4, 6, 5, 7, 3, 8], "image_size": 32, "pool": False, "batch_norm": True}
CASES["transunet, VGG16"] = ("transunet", {**SMALL, "backbone": "VGG16", **BELOW})
CASES["transunet, ResNet50"] = ("transunet", {**SMALL, "backbone": "ResNet50"})
CASES["transunet, ResNet50V2"] = (
    "transunet",
    {**SMALL, "backbone": "ResNet50V2", "classes": 3, "in_channels": 1},
)
CASES["transunet, DenseNet121"] = (
    "transunet",
    {**SMALL, "backbone": "DenseNet121", "image_size": 32},
)
CASES["transunet, EfficientNetB0"] = (
    "transunet",
    {**SMALL, "backbone": "EfficientNetB0", "image_size": 32},
)
for name in ("ReLU", "ELU", "LeakyReLU", "Softmax", "PReLU", "Snake"):
    CASES[f"transunet, {name}"] = ("transunet", {**SMALL, "mlp_activation": name})


def probabilities(arch: str, logits: torch.Tensor) -> np.ndarray:
    """As the baseline computes them, (N, H, W, classes)."""
    is_softmax = logits.shape[1] > 1 and arch != "u2net"
    probs = logits.softmax(1) if is_softmax else logits.sigmoid()
    return probs.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
def test_probabilities_equal_those_of_a_rebuilt_network(case, tmp_path):
    from keras_networks import build_with_random_weights

    arch, settings = CASES[case]
    keras_model = build_with_random_weights(arch, **settings)
    suffix = (".keras", ".weights.h5", ".h5")[list(CASES).index(case) % 3]
    path = tmp_path / f"model{suffix}"
    if suffix == ".weights.h5":
        keras_model.save_weights(path)
    else:
        keras_model.save(path)

    arguments = dict(settings)
    if arch != "transunet":
        del arguments["image_size"]
    network = build_model(arch, **arguments).eval()
    load_keras_weights(network, path)

    size = settings["image_size"]
    shape = (2, size, size, settings.get("in_channels", 3))
    # Batch normalisation or a division by 255 keeps the sigmoid of such pixels from its ends.
    brightest = 255 if settings.get("backbone", "VGG16") != "VGG16" else 2
    image = np.random.default_rng(1).uniform(0, brightest, shape).astype(np.float32)
    theirs = np.array(keras_model(image))
    with torch.inference_mode():
        logits = network(torch.from_numpy(image).permute(0, 3, 1, 2))
    ours = probabilities(arch, logits)
    assert np.ptp(theirs) > 0.01  # the image matters
    difference = np.abs(ours - theirs).max()
    print(f"\n{case}: largest difference of probabilities {difference:.1e}")
    assert difference <= 1e-5
