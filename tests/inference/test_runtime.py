"""`ovseg.runtime` gives the masks of `Predictor` without torch and OpenCV."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.data import geometry
from ovseg.inference.labels import Postprocessing
from ovseg.inference.predictor import Predictor
from support import REPOSITORY

pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
pytest.importorskip("onnxscript", reason="needs the extra [onnx]")

from ovseg import runtime

SIZES = [(64, 64), (50, 64), (64, 37), (33, 200), (500, 41), (17, 23), (1, 1), (1, 90)]


@pytest.mark.parametrize("fit", ["letterbox", "stretch", "stretch_nearest"])
@pytest.mark.parametrize("size", SIZES)
def test_square_is_that_of_opencv_to_a_grey_value(size, fit):
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    found = runtime.place(picture, 48, fit).astype(int)
    assert np.abs(found - geometry.place(picture, 48, fit)).max() <= 1


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
@pytest.mark.parametrize("size", SIZES)
def test_probabilities_are_restored_as_by_opencv(size, fit):
    probs = np.random.default_rng(0).random((48, 48), np.float32)
    found = runtime.restore(probs, *size, fit)
    np.testing.assert_allclose(found, geometry.restore(probs, *size, fit), atol=1e-5)


def test_areas_of_two_by_three():
    """Each new pixel is the mean of the old ones that it covers."""
    expected = [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]
    np.testing.assert_allclose(runtime.area_weights(3, 2), expected, rtol=1e-6)


@pytest.mark.parametrize("with_postprocessing", [False, True])
def test_masks_are_those_of_the_predictor(exported, images, with_postprocessing):
    model = runtime.Model(exported / "export" / "model.onnx")
    if not with_postprocessing:
        model.postprocessing = Postprocessing()
    predictor = Predictor.load(exported, postprocessing=with_postprocessing)
    for path in sorted(images.iterdir()):
        expected = predictor.predict(path)
        found = model.predict(path)
        np.testing.assert_allclose(found.probs[0], expected.probs, atol=0.02)
        assert (found.labels != expected.labels).mean() < 0.01


def test_it_starts_without_torch(exported, images, tmp_path):
    """Only numpy, ONNX Runtime and Pillow are imported."""
    code = (
        "import sys; from ovseg import runtime; "
        "code = runtime.main(sys.argv[1:]); "
        "known = ('torch', 'cv2', 'scipy', 'msgspec', 'pandas', 'matplotlib'); "
        "print([name for name in known if name in sys.modules]); "
        "sys.exit(code)"
    )
    model = exported / "export" / "model.onnx"
    options = ["--model", model, "--images", images, "--output", tmp_path / "masks"]
    result = subprocess.run(
        [sys.executable, "-c", code, *options], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [
        "a.png",
        "b.png",
        "c.png",
        "d.png",
    ]
    with Image.open(tmp_path / "masks" / "c.png") as mask:
        assert mask.size == (37, 64)
        assert set(np.unique(np.array(mask))) <= {0, 255}


def test_unreadable_picture_is_named_and_the_rest_written(exported, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no picture")
    cv2.imwrite(str(folder / "good.png"), np.zeros((20, 30, 3), np.uint8))
    model = exported / "export" / "model.onnx"
    options = ["--model", model, "--images", folder, "--output", tmp_path / "masks"]
    assert runtime.main([str(option) for option in options]) == 1
    assert "broken.png cannot be read" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["good.png"]


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_what_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="model.onnx is no model of ONNX"):
        runtime.Model(path)
    with pytest.raises(InputError, match="There is no file .*absent.onnx"):
        runtime.Model(tmp_path / "absent.onnx")


def test_array_of_another_kind_is_refused(exported):
    model = runtime.Model(exported / "export" / "model.onnx")
    with pytest.raises(InputError, match=r"float64 of shape \(4, 4\), expected uint8"):
        model.predict(np.zeros((4, 4)))


def test_mistakes_are_one_line(exported, images, tmp_path, capsys):
    model = exported / "export" / "model.onnx"
    output = tmp_path / "masks"
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    cases = [
        ([tmp_path / "no.onnx", images, output], "There is no file"),
        ([model, tmp_path / "empty", output], "There is no picture in"),
        ([model, images, tmp_path / "file"], "File exists"),
    ]
    for (file, pictures, folder), message in cases:
        options = ["--model", file, "--images", pictures, "--output", folder]
        assert runtime.main([str(option) for option in options]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1


def test_pictures_of_one_stem_are_refused(exported, images, tmp_path, capsys):
    options = ["--model", exported / "export" / "model.onnx", "--output", tmp_path / "masks"]
    options += ["--images", images / "a.png", images]
    assert runtime.main([str(option) for option in options]) == 2
    assert "Several pictures would have one mask: a. Rename them." in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()
