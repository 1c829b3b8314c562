"""What the trials of faults need: commands that are killed, and whole files to be damaged.

`OVSEG_FAULTS=20 python -m pytest -m slow tests/faults -s` makes 20 trials of each kind (by default
3) and prints the counts. The trials are the same in every run with the same OVSEG_FAULTS_SEED.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image
from pydicom.uid import JPEG2000Lossless

from dicom_files import compress, make_dicom, make_region, save_dicom
from keras_files import layers_of, write_keras2
from ovseg.core.checkpoints import checkpoint_digest
from ovseg.core.files import write_json
from ovseg.data.pictures import read_image
from ovseg.data.prepare.phantoms import write_phantoms
from ovseg.models import build_model
from support import REPOSITORY

SERVER = Path(__file__).with_name("server.py")


@dataclass
class Result:
    """How a command ended.

    Attributes:
        code: its exit code, -9 where it was killed.
        seconds: how long it ran.
        printed: all that it printed.
    """

    code: int
    seconds: float
    printed: str

    @property
    def errors(self) -> list[str]:
        """The lines of `error: ...`."""
        return [line for line in self.printed.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="session")
def trials() -> int:
    """How many trials of each kind."""
    return int(os.environ.get("OVSEG_FAULTS", "3"))


@pytest.fixture
def draw(request) -> random.Random:
    """Random numbers of one test."""
    return random.Random(f"{request.node.name} {os.environ.get('OVSEG_FAULTS_SEED', '0')}")


@pytest.fixture(scope="session")
def call(tmp_path_factory) -> Iterator[Callable[..., Result]]:
    """A function that runs `ovseg NAME ...` in a folder, see `server.py`."""
    logs = tmp_path_factory.mktemp("logs")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),  # of this checkout, whatever is installed
        "PYTHONWARNINGS": "ignore",
    }
    server = subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )

    def run(
        folder: Path,
        *arguments: object,
        kill_after: float | None = None,
        file_limit: int | None = None,
        temporary: Path | None = None,
    ) -> Result:
        # One each: workers of a killed training may print later.
        log = logs / f"{len(list(logs.iterdir()))}.txt"
        task = {
            "log": str(log),
            "folder": str(folder),
            "arguments": [str(argument) for argument in arguments],
            "kill_after": kill_after,
            "file_limit": file_limit,
            "temporary": None if temporary is None else str(temporary),
        }
        server.stdin.write(json.dumps(task) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        log.touch()
        printed = log.read_text(errors="replace")
        return Result(answer["code"], answer["seconds"], printed)

    yield run
    server.stdin.close()
    server.wait()
    server.stdout.close()


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """A function that gives the SHA-256 of every file in a folder, by its path there."""

    def read(folder: Path) -> dict[str, str]:
        found = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = str(path.relative_to(folder))
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    return read


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
    image = read_image(picture)
    cine = make_dicom(
        np.stack([image, image]),
        SequenceOfUltrasoundRegions=[make_region((0, 31, 0, 31), (0.02, 0.02))],
    )
    save_dicom(folder / "cine.dcm", compress(cine, JPEG2000Lossless))

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
    write_sources(folder)
    return folder


def write_sources(folder: Path) -> None:
    """Write 12 pictures with a rectangle in four layouts, and lists of them."""
    outline = [4, 6, 20, 6, 20, 16, 4, 16]
    mask = np.zeros((24, 32), np.uint8)
    mask[6:16, 4:20] = 255
    chance = np.random.default_rng(0)
    images = []
    annotations = []
    elements = []
    for number in range(12):
        name = f"{number}.png"
        picture = chance.integers(0, 255, (24, 32, 3), np.uint8)
        for layout in ("folders", "otu2d", "yolo", "coco", "cvat"):
            write_picture(folder / layout / "images" / name, picture)
        write_picture(folder / "folders" / "masks" / name, mask)
        colours = mask[..., None] // 255 * np.uint8([64, 0, 0])
        write_picture(folder / "otu2d" / "annotations" / name, colours)
        shares = [f"{value / (32, 24)[place % 2]:.4f}" for place, value in enumerate(outline)]
        labels = folder / "yolo" / "labels" / f"{number}.txt"
        labels.parent.mkdir(exist_ok=True)
        labels.write_text(f"0 {' '.join(shares)}\n")
        images.append({"id": number, "file_name": name, "width": 32, "height": 24})
        annotations.append({"image_id": number, "category_id": 1, "segmentation": [outline]})
        points = ";".join(f"{x},{y}" for x, y in zip(outline[::2], outline[1::2], strict=True))
        polygon = f"<polygon label='cyst' points='{points}'/>"
        elements.append(f"<image name='{name}' width='32' height='24'>{polygon}</image>")

    (folder / "yolo" / "classes.txt").write_text("cyst\nsolid part\n")
    categories = [{"id": 1, "name": "cyst"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "coco" / "coco.json", content)
    xml = f"<annotations>{''.join(elements)}</annotations>"
    (folder / "cvat" / "annotations.xml").write_text(xml)

    splits = ["train"] * 8 + ["valid"] * 2 + ["test"] * 2
    split = {str(number): name for number, name in enumerate(splits)}
    write_json(folder / "split.json", split)
    lines = ["image,split", *(f"{stem},{name}" for stem, name in split.items())]
    (folder / "split.csv").write_text("\n".join(lines))
    lines = ["Image,Patient ID", *(f"{stem}.png,p{int(stem) // 2}" for stem in split)]
    (folder / "patients.csv").write_text("\n".join(lines))
    (folder / "otu2d" / "train.txt").write_text("\n".join(list(split)[:9]))
    (folder / "otu2d" / "val.txt").write_text("\n".join(list(split)[9:]))


def write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


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
