"""A configuration of the baseline, a tiny network of it, and files of its weights."""

import runpy

import h5py
import pytest
from torch.nn import init

from ovseg.models import build_model

EXPERIMENT = """
; the author's experiment, with its malformed values
[model]
model          = "TensorflowUNet"
generator      = False
image_width    = 512
image_height   = 512
image_channels = 3
input_normalize = False
normalization  = False
num_classes    = 1
base_filters   = 16
base_kernels   = (9,9)
num_layers     = 8
dropout_rate   = 0.05
learning_rate  = 0.00007
clipvalue      = 0.5
dilation       = (3,3)
loss           = "bce_dice_loss"
metrics        = ["dice_coef"]
show_summary   = False
[dataset]
datasetclass  = "BaseImageMaskDataset"
[train]
epochs        = 100
batch_size    = 2
patience      = 10
image_datapath = "../../../dataset/Ovarian-Tumor/train/images/"
mask_datapath  = "../../../dataset/Ovarian-Tumor/train/masks/"
learning_rate_reducer = True
reducer_factor     = 0.4
reducer_patience   = 4
epoch_change_infer = True
num_infer_images   = 6
[eval]
image_datapath = "../../../dataset/Ovarian-Tumor/valid/images/"
[mask]
blur      = True
[augmentor]
vflip     = Fale
angles    = [90. 180, 270,]
"""


@pytest.fixture
def write_experiment(tmp_path):
    """A function that writes the experiment's configuration with one text replaced."""

    def write(old: str = "", new: str = ""):
        path = tmp_path / "train_eval_infer.config"
        text = EXPERIMENT
        if old:
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
        return path

    return write


@pytest.fixture
def experiment_file(write_experiment):
    return write_experiment()


@pytest.fixture
def tiny_settings():
    """Arguments of a tiny flexible UNet."""
    return {"base_filters": 2, "num_layers": 3, "base_kernel": 5, "normalization": True}


@pytest.fixture
def source(tiny_settings):
    """A tiny flexible UNet with random weights and random batch statistics."""
    network = build_model("flexible_unet", **tiny_settings).eval()
    for name, buffer in network.named_buffers():
        if "running" in name:
            init.uniform_(buffer, 0.5, 1.5)
    return network


@pytest.fixture
def write_keras3():
    """A function that writes layers, as `keras_files.layers_of` gives them, like Keras 3 does."""

    def write(path, layers, named: bool = True):
        counts: dict[str, int] = {}
        with h5py.File(path, "w") as file:
            for name, weights in reversed(layers):  # Keras 3 numbers groups in another order
                stem, _, number = name.rpartition("_")
                if not number.isdigit():
                    stem = name
                number = counts.get(stem, 0)
                counts[stem] = number + 1
                group_name = f"{stem}_{number}" if number else stem
                group = file.create_group(f"layers/{group_name}/vars")
                if named:
                    group.attrs["name"] = name
                for index, (_, array) in enumerate(weights):
                    group.create_dataset(str(index), data=array)
        return path

    return write


@pytest.fixture
def keras_fixture(shared_file, tmp_path):
    """A function from a name to the folder of a network of the baseline, and its weights."""

    def find(name: str, weights: str = "best_model.h5"):
        folder = shared_file(f"keras_fixtures/{name}")
        path = folder / weights
        if not path.exists():  # three folders hold what the file is made from
            path = tmp_path / weights
            make_h5 = runpy.run_path(str(folder.parent / "make_h5.py"))
            make_h5["main"](str(folder), str(path))
        return folder, path

    return find
