"""Files that Keras itself writes; runs where TensorFlow is installed."""

import numpy as np
import pytest
import torch

from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.models import build_model

tensorflow = pytest.importorskip("tensorflow", reason="needs the extra [tensorflow]")
# A process can't change them once TensorFlow has computed; the benchmark's tests ask for one too.
tensorflow.config.threading.set_intra_op_parallelism_threads(1)
tensorflow.config.threading.set_inter_op_parallelism_threads(1)

SETTINGS = {
    "base_filters": 2,
    "base_kernel": 5,
    "num_layers": 3,
    "dilation": 2,
    "activation": "mish",
    "normalization": True,
    "input_scale": 1 / 255,
}


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "model.h5"])
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
def test_files_that_keras_3_writes_give_its_probabilities(name, tmp_path):
    from ovseg.baseline.keras_unet import build_keras_unet

    keras_model = build_keras_unet(32, **SETTINGS)
    save = keras_model.save
    if name == "model.weights.h5":
        save = keras_model.save_weights
    save(tmp_path / name)
    network = build_model("flexible_unet", **SETTINGS).eval()
    load_keras_weights(network, tmp_path / name)

    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.float32)
    theirs = np.array(keras_model(image))
    with torch.inference_mode():
        logits = network(torch.from_numpy(image).permute(0, 3, 1, 2))
    ours = logits.sigmoid().permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - theirs).max() < 1e-5
