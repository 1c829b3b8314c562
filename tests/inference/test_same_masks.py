"""One picture, one mask: by every engine, exported file, the runtime and the endpoint.

`OVSEG_MASKS_RUN=runs/best_cpu/version_0 python -m pytest -m slow -s tests/inference` compares a run
of yours and prints the table of docs/inference.md.
"""

import base64
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ovseg.inference.agreement import dice_between
from ovseg.inference.export import export_run
from ovseg.inference.predictor import Predictor
from serving import encode, start_process

pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
pytest.importorskip("openvino", reason="needs the extra [openvino]")

from ovseg.runtime import Model

PICTURES = 50
Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # labels and probabilities


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory) -> Path:
    """The run to compare; without one of the user's, a tiny one."""
    chosen = os.environ.get("OVSEG_MASKS_RUN")
    return Path(chosen) if chosen else make_run(tmp_path_factory.mktemp("masks") / "tiny")


def cut_odd_sizes(folder: Path) -> Iterator[np.ndarray]:
    """Parts of real pictures, both of whose sides are odd, RGB, uint8 (H, W, 3)."""
    paths = sorted(folder.iterdir())
    generator = np.random.default_rng(0)
    for place in np.linspace(0, len(paths) - 1, PICTURES).astype(int):
        with Image.open(paths[place]) as picture:
            image = np.array(picture.convert("RGB"))
        height, width = (generator.uniform(0.6, 1, 2) * image.shape[:2]).astype(int) // 2 * 2 + 1
        yield np.ascontiguousarray(image[-height:, -width:])


def by_predictor(source: Path, engine: str = "torch") -> Predict:
    predictor = Predictor.load(source, "cpu", engine=engine)

    def predict(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        prediction = predictor.predict(image)
        return prediction.labels, prediction.probs

    return predict


def by_runtime(model: Model) -> Predict:
    def predict(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        prediction = model.predict(image)
        probs = model.postprocessing.calibrate(prediction.probs)
        return prediction.labels, probs[0]

    return predict


def by_endpoint(url: str) -> Predict:
    def predict(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        query = "?mask=true&probabilities=true"
        response = httpx2.post(f"{url}/predict{query}", files={"file": encode(image)}, timeout=120)
        answer = response.json()
        found = []
        for key in ("mask", "probabilities"):
            with Image.open(io.BytesIO(base64.b64decode(answer[key]))) as picture:
                found.append(np.array(picture))
        return found[0] // 255, found[1] / np.float32(255)

    return predict


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_masks_are_the_same_everywhere(run, shared_file, tmp_path):
    images = list(cut_odd_sizes(shared_file("data/OTU_2d/images")))
    export_run(run, tmp_path / "onnx", "onnx")
    export_run(run, tmp_path / "openvino", "openvino")
    export_run(run, tmp_path / "safetensors", "safetensors", "float16")
    with start_process(run) as process:
        ways = {
            "ONNX Runtime (`--engine`)": by_predictor(run, "onnxruntime"),
            "OpenVINO (`--engine`)": by_predictor(run, "openvino"),
            "ONNX file": by_predictor(tmp_path / "onnx"),
            "OpenVINO file": by_predictor(tmp_path / "openvino"),
            "safetensors file, float16": by_predictor(tmp_path / "safetensors"),
            "`ovseg.runtime`": by_runtime(Model(tmp_path / "onnx" / "model.onnx")),
            "endpoint of `serve`": by_endpoint(process.url),
        }
        reference = list(map(by_predictor(run), images))
        rows = []
        for name, predict in ways.items():
            pixels = []
            dices = []
            largest = 0.0
            for image, (labels, probs) in zip(images, reference, strict=True):
                found, found_probs = predict(image)
                pixels.append(int((found != labels).sum()))
                dices.append(dice_between(found > 0, labels > 0))
                largest = max(largest, float(np.abs(found_probs - probs).max()))
            rows.append(
                {
                    "way": name,
                    "equal masks": sum(count == 0 for count in pixels),
                    "pixels that differ": sum(pixels),
                    "most in a picture": max(pixels),
                    "least Dice": round(min(dices), 4),
                    "largest difference of a probability": f"{largest:.1e}",
                }
            )
    table = pd.DataFrame(rows).set_index("way")
    total = sum(labels.size for labels, _ in reference)
    print(f"\n{len(images)} pictures, {total:,} pixels\n{table.to_string()}")
    assert (table["least Dice"] > 0.99).all()
    assert table.loc["endpoint of `serve`", "pixels that differ"] == 0
