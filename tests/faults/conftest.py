"""A small dataset, a run on it and other files that commands take, to be damaged by the tests."""

import json
import shutil
import zipfile
from pathlib import Path

import h5py
import pytest
import yaml

from keras_files import layers_of, write_keras2
from ovseg.core.checkpoints import checkpoint_digest
from ovseg.core.files import write_json
from ovseg.data.prepare.phantoms import write_phantoms
from ovseg.models import build_model

CONFIGURATION = {
    "model": {
        "arch": "flexible_unet",
        "arch_args": {"base_filters": 2, "num_layers": 2, "base_kernel": 3},
        "loss": "tversky_loss",
        "loss_args": {"false_positive_weight": 0.4},
        "optimizer_args": {"lr": 0.001},
        "scheduler": "plateau",
        "scheduler_args": {"patience": 2},
    },
    "data": {"image_size": 32, "batch_size": 4, "num_workers": 0, "cache": False},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1},
    "early_stopping": {"patience": 5},
    "snapshots": {"num_infer_images": 0},
    "evaluate_test": False,
}
EXPERIMENT = """[model]
model = "TensorflowUNet"
image_width = 32
image_height = 32
base_filters = 2
base_kernels = (3,3)
num_layers = 2
dropout_rate = 0.0
learning_rate = 0.001
normalization = False
clipvalue = 0.5
dilation = (1,1)
loss = "bce_dice_loss"
[train]
epochs = 1
batch_size = 2
image_datapath = "data/train/images/"
"""


@pytest.fixture(scope="session")
def whole(tmp_path_factory, run_command) -> Path:
    """The whole files. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    write_phantoms(folder / "data", 10, size=32, seed=3, folds=2)
    (folder / "one").mkdir()
    picture = next((folder / "data" / "test" / "images").iterdir())
    shutil.copy(picture, folder / "one")

    CONFIGURATION["data"]["root"] = str(folder / "data")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIGURATION))
    options = ["--config", folder / "tiny.yaml", "--runs_dir", folder / "runs"]
    assert run_command("train", *options) == 0
    shutil.move(folder / "runs" / "tiny" / "version_0", folder / "run")
    shutil.rmtree(folder / "runs")
    shutil.copytree(folder / "run", folder / "ensemble" / "a")
    write_json(folder / "ensemble" / "ensemble.json", {"members": ["a"]})

    digest = checkpoint_digest(folder / "run" / "checkpoints" / "best.ckpt")
    chosen = {"flips": ["horizontal"], "threshold": 0.4, "min_area": 0.01}
    content = {"postprocessing": chosen, "checkpoint_sha256": digest}
    write_json(folder / "run" / "postprocessing.json", content)

    (folder / "experiment.config").write_text(EXPERIMENT)
    network = build_model("flexible_unet", base_filters=2, num_layers=2, base_kernel=3)
    write_keras2(folder / "weights.h5", layers_of(network))
    write_archive(folder / "weights.keras", layers_of(network))
    return folder


def write_archive(path: Path, layers) -> None:
    """Write layers as a Keras 3 archive."""
    weights = path.with_name("model.weights.h5")
    with h5py.File(weights, "w") as file:
        for name, arrays in layers:
            group = file.create_group(f"layers/{name}/vars")
            group.attrs["name"] = name
            for index, (_, array) in enumerate(arrays):
                group.create_dataset(str(index), data=array)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"config": {"layers": []}}))
        archive.write(weights, weights.name)


@pytest.fixture
def work(whole, tmp_path, monkeypatch) -> Path:
    """A copy of the whole files, which is the current folder."""
    shutil.copytree(whole, tmp_path / "work")
    folder = tmp_path / "work"
    text = (folder / "tiny.yaml").read_text()
    (folder / "tiny.yaml").write_text(text.replace(str(whole / "data"), "data"))
    monkeypatch.chdir(folder)
    return folder
