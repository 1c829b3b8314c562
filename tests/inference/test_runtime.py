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
        "known = ('torch', 'cv2', 'scipy', 'msgspec', 'pandas', 'matplotlib', 'filelock', "
        "'psutil', 'pydicom', 'yaml'); "
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


def test_picture_of_another_kind_is_refused(exported):
    model = runtime.Model(exported / "export" / "model.onnx")
    with pytest.raises(InputError, match=r"float64 of shape \(4, 4\), expected uint8"):
        model.predict(np.zeros((4, 4)))
    with pytest.raises(InputError, match="of the type list, expected a path, .* one by one"):
        model.predict(["a.png", "b.png"])
    deep = Image.fromarray(np.zeros((4, 4), np.uint16))
    with pytest.raises(InputError, match="The picture has mode I;16, expected 8 bits"):
        model.predict(deep)


def test_image_of_pillow_is_turned_as_its_file_is(exported, tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees
    picture = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    Image.fromarray(picture).save(path, exif=exif)
    model = runtime.Model(exported / "export" / "model.onnx")
    with Image.open(path) as opened:
        found = model.predict(opened)
    assert found.labels.shape == (30, 20)
    assert np.array_equal(found.probs, model.predict(path).probs)


def test_folder_of_an_export_is_a_model(exported, images, tmp_path):
    path = images / "a.png"
    by_file = runtime.Model(exported / "export" / "model.onnx").predict(path)
    by_folder = runtime.Model(exported / "export").predict(path)
    assert np.array_equal(by_file.probs, by_folder.probs)
    with pytest.raises(InputError, match=f"There is no file {tmp_path}/model.onnx"):
        runtime.Model(tmp_path)


@pytest.fixture
def write(exported, images, tmp_path):
    """A function that writes masks to `masks`; the exit code."""

    def write(*options: object) -> int:
        arguments = ["--model", exported / "export", "--output", tmp_path / "masks"]
        if "--images" not in options:
            arguments += ["--images", images]
        return runtime.main([str(option) for option in (*arguments, *options)])

    return write


def test_files_of_a_folder_that_are_left_out_are_counted(write, images, tmp_path, capsys):
    folder = tmp_path / "exam"
    folder.mkdir()
    (folder / "1.dcm").touch()
    (folder / "2.dcm").touch()
    assert write("--images", images, folder) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors == [
        f"{folder}: 2 files were left out: 2 .dcm.",
        f"error: There is no picture in {folder}. DICOM is not read here.",
    ]
    assert not (tmp_path / "masks").exists()

    cv2.imwrite(str(folder / "3.png"), np.zeros((20, 30, 3), np.uint8))
    assert write("--images", folder) == 0
    assert capsys.readouterr().err == f"{folder}: 2 files were left out: 2 .dcm.\n"


def test_masks_that_are_there_are_replaced_only_if_that_is_asked_for(write, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    old = tmp_path / "masks" / "c.png"
    old.write_bytes(b"drawn by hand")
    (tmp_path / "masks" / "other.png").write_bytes(b"another")
    assert write() == 2
    assert "masks holds 1 of the masks already: c.png. Choose" in capsys.readouterr().err
    assert old.read_bytes() == b"drawn by hand"
    assert len(list((tmp_path / "masks").iterdir())) == 2

    assert write("--overwrite") == 0
    with Image.open(old) as mask:
        assert mask.size == (37, 64)
    assert (tmp_path / "masks" / "other.png").read_bytes() == b"another"


def test_folder_of_the_pictures_is_no_output(write, images, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    picture = tmp_path / "masks" / "a.png"
    picture.write_bytes((images / "a.png").read_bytes())
    content = picture.read_bytes()
    assert write("--images", picture, "--overwrite") == 2
    assert "holds pictures that are read. Choose another --output." in capsys.readouterr().err
    assert picture.read_bytes() == content


def test_mask_is_written_whole_or_not_at_all(write, tmp_path, capsys, monkeypatch):
    assert write() == 0
    before = {path: path.read_bytes() for path in (tmp_path / "masks").iterdir()}

    def fill_the_disk(image: Image.Image, path: object, **options: object) -> None:
        with open(path, "wb") as file:
            file.write(b"half a mask")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    assert write("--overwrite") == 2
    assert capsys.readouterr().err.endswith("a.png: No space left on device.\n")
    assert {path: path.read_bytes() for path in (tmp_path / "masks").iterdir()} == before


def test_mistakes_are_one_line(exported, images, tmp_path, capsys):
    model = exported / "export" / "model.onnx"
    output = tmp_path / "masks"
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    cases = [
        ([tmp_path / "no.onnx", images, output], "There is no file"),
        ([model, tmp_path / "empty", output], "There is no picture in"),
        ([model, images, tmp_path / "file"], "file is a file. Name a folder."),
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
