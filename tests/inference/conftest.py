"""Runs and pictures for the tests of inference."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ovseg.core.checkpoints import checkpoint_digest, find_checkpoints
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.inference.export import export_run
from ovseg.inference.labels import Postprocessing, to_dict
from ovseg.models import build_model


@pytest.fixture
def network() -> nn.Module:
    """A small network with dilated convolutions, in evaluation mode."""
    network = build_model("flexible_unet", base_filters=2, num_layers=3, base_kernel=5, dilation=2)
    return network.eval()


@pytest.fixture
def image() -> torch.Tensor:
    """Two pictures of noise that are not square."""
    return torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)


@pytest.fixture(scope="session")
def run(make_run, tmp_path_factory) -> Path:
    """A run of one class that places pictures in 32 x 32. Not to be changed."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def category_run(make_run, tmp_path_factory) -> Path:
    """A run for four categories. Not to be changed."""
    return make_run(tmp_path_factory.mktemp("category_run"), classes=5, augmentation="flips")


@pytest.fixture(scope="session")
def large_run(make_run, tmp_path_factory) -> Path:
    """A run that stretches pictures to 48 x 48. Not to be changed."""
    folder = tmp_path_factory.mktemp("large_run")
    return make_run(folder, seed=1, image_size=48, fit="stretch")


@pytest.fixture
def ensemble(run, large_run, tmp_path) -> Path:
    """An ensemble of copies of `run` and `large_run`."""
    members = ["run", "large_run"]
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(large_run, tmp_path / "large_run")
    (tmp_path / "ensemble.json").write_text(json.dumps({"members": members}))
    return tmp_path


@pytest.fixture(scope="session")
def write_postprocessing() -> Callable[[Path, Postprocessing], None]:
    """A function that writes the post-processing of a run folder."""

    def write(run: Path, postprocessing: Postprocessing) -> None:
        digest = checkpoint_digest(*find_checkpoints(run))
        content = {"postprocessing": to_dict(postprocessing), "checkpoint_sha256": digest}
        (run / "postprocessing.json").write_text(json.dumps(content))

    return write


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory, write_postprocessing) -> Path:
    """A copy of `run` with post-processing, exported as ONNX. Not to be changed."""
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    folder = shutil.copytree(run, tmp_path_factory.mktemp("exported") / "run")
    chosen = Postprocessing(
        flips=("horizontal",), threshold=0.4, keep_largest=True, fill_holes=True, min_area=0.01
    )
    write_postprocessing(folder, chosen)
    export_run(folder)
    return folder


@pytest.fixture
def own_run(run, tmp_path) -> Path:
    """A copy of `run`, to write into."""
    return shutil.copytree(run, tmp_path / "run")


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A folder of four pictures of different sizes and formats; d is grey. Not to be changed."""
    folder = tmp_path_factory.mktemp("images")
    image = make_phantom(9, 64)[0]
    Image.fromarray(image).save(folder / "a.png")
    Image.fromarray(image[:50]).save(folder / "b.jpg")
    Image.fromarray(image[:, :37]).save(folder / "c.bmp")
    Image.fromarray(image[..., 0]).save(folder / "d.tif")
    return folder


@pytest.fixture(scope="session")
def read_png() -> Callable[[Path], np.ndarray]:
    """A function that reads a picture as it is stored."""

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as picture:
            return np.array(picture)

    return read
