"""`infer --as_baseline` writes the files of the baseline's inferencer."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from keras_files import layers_of, write_keras2
from ovseg.baseline.importer import import_baseline
from ovseg.inference.predictor import Predictor
from ovseg.models import build_model

CONFIG = """
[model]
image_width = 32
image_height = 32
base_filters = 2
base_kernels = (5,5)
num_layers = 3
dropout_rate = 0.05
learning_rate = 0.001
loss = "bce_dice_loss"
[train]
batch_size = 2
epochs = 2
"""
BASE = '[dataset]\ndatasetclass = "BaseImageMaskDataset"\n'


@pytest.fixture
def make_imported(tmp_path):
    """A function from further sections to an imported run of a tiny network with known weights."""
    network = build_model(
        "flexible_unet", base_filters=2, base_kernel=5, num_layers=3, dilation=1
    ).eval()
    (tmp_path / "models").mkdir()
    write_keras2(tmp_path / "models" / "best_model.h5", layers_of(network))

    def make(sections: str):
        config = tmp_path / "my.config"
        config.write_text(CONFIG + sections)
        import_baseline(config, tmp_path / "models", tmp_path / "run", overwrite=True)
        return tmp_path / "run"

    return make


@pytest.fixture
def pictures(tmp_path):
    """Two coloured pictures that are not square."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("a.jpg", (50, 40)), ("b.2.png", (20, 60))):
        pixels = cv2.blur(generator.integers(0, 256, (*size, 3), dtype=np.uint8), (7, 7))
        Image.fromarray(pixels).save(folder / name)
    return folder


def jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG")
    return buffer.getvalue()


def probs_of(run, rgb: np.ndarray) -> np.ndarray:
    """What the run's network makes of a picture of its own size."""
    return Predictor.load(run, "cpu", postprocessing=False).predict(rgb).probs


def square_of(path) -> np.ndarray:
    """As the baseline reads and resizes it, RGB."""
    bgr = cv2.resize(cv2.imread(str(path)), (32, 32), interpolation=cv2.INTER_NEAREST)
    return np.ascontiguousarray(bgr[..., ::-1])


def infer(run_command, run, pictures, output) -> None:
    given = ("--run", run, "--images", pictures, "--output", output, "--device", "cpu")
    assert run_command("infer", *given, "--as_baseline") == 0


def test_files_are_those_of_the_baseline(make_imported, pictures, tmp_path, run_command):
    run = make_imported(BASE)
    infer(run_command, run, pictures, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.*") if path.name[0] != ".")
    assert names == ["a.jpg", "b.2.jpg"]
    for name, path in (("a.jpg", pictures / "a.jpg"), ("b.2.jpg", pictures / "b.2.png")):
        probs = probs_of(run, square_of(path))
        grey = np.floor(probs * np.float32(255)).astype(np.uint8)
        with Image.open(path) as picture:
            resized = Image.fromarray(grey).convert("RGB").resize(picture.size)
        assert (tmp_path / "out" / name).read_bytes() == jpeg(resized)


@pytest.mark.parametrize(
    ("sections", "change"),
    [
        ('color_order = "bgr"\n', lambda rgb: rgb[..., ::-1]),
        (
            "[image]\ngamma = 2\n",
            lambda rgb: ((np.arange(256) / 255) ** 2 * 255).astype(np.uint8)[rgb],
        ),
        (
            '[image]\ncolor_converter = "cv2.COLOR_RGB2HSV"\n',
            lambda rgb: cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV),
        ),
    ],
)
def test_pictures_are_changed_as_the_keys_say(
    make_imported, pictures, tmp_path, run_command, sections, change
):
    run = make_imported(BASE + sections)
    infer(run_command, run, pictures / "a.jpg", tmp_path / "out")
    probs = probs_of(run, np.ascontiguousarray(change(square_of(pictures / "a.jpg"))))
    grey = np.floor(probs * np.float32(255)).astype(np.uint8)
    resized = Image.fromarray(grey).convert("RGB").resize((40, 50))
    assert (tmp_path / "out" / "a.jpg").read_bytes() == jpeg(resized)


def test_sharpening_comes_before_the_resize(make_imported, pictures, tmp_path, run_command):
    run = make_imported(BASE + "[image]\nsharpening = 1\n")
    infer(run_command, run, pictures / "a.jpg", tmp_path / "out")
    rgb = np.ascontiguousarray(cv2.imread(str(pictures / "a.jpg"))[..., ::-1])
    kernel = np.array([[-1, -1, -1], [-1, 9, -1], [-1, -1, -1]])
    sharp = cv2.filter2D(rgb, -1, kernel)
    square = cv2.resize(sharp, (32, 32), interpolation=cv2.INTER_NEAREST)
    grey = np.floor(probs_of(run, square) * np.float32(255)).astype(np.uint8)
    resized = Image.fromarray(grey).convert("RGB").resize((40, 50))
    assert (tmp_path / "out" / "a.jpg").read_bytes() == jpeg(resized)


@pytest.mark.parametrize("colorize", [False, True])
def test_predictions_are_changed_as_the_keys_say(
    make_imported, pictures, tmp_path, run_command, colorize
):
    sections = "[infer]\nblur = True\nksize = (3,5)\nbinarize = True\nthreshold = 120\n"
    if colorize:
        sections += '[segmentation]\ncolorize = True\nblack = "black"\nwhite = "green"\n'
    run = make_imported(BASE + sections)
    infer(run_command, run, pictures / "a.jpg", tmp_path / "out")
    probs = cv2.GaussianBlur(probs_of(run, square_of(pictures / "a.jpg")), (3, 5), 0)
    grey = np.floor(probs * np.float32(255)).astype(np.uint8)
    picture = Image.fromarray(np.where(grey >= 120, 255, 0).astype(np.uint8)).convert("RGB")
    picture = picture.resize((40, 50))
    if colorize:
        picture = ImageOps.colorize(picture.convert("L"), black="black", white="green")
    assert (tmp_path / "out" / "a.jpg").read_bytes() == jpeg(picture)


def test_merged_pictures_are_sums(make_imported, pictures, tmp_path, run_command):
    run = make_imported(BASE + '[infer]\nmerged_dir = "./merged"\n')
    infer(run_command, run, pictures, tmp_path / "out")
    square = square_of(pictures / "b.2.png")
    grey = np.floor(probs_of(run, square) * np.float32(255)).astype(np.uint8)
    drawn = np.array(Image.fromarray(grey).convert("RGB").resize((60, 20)))
    bgr = np.ascontiguousarray(square[..., ::-1])
    expected = cv2.resize(bgr, (60, 20), interpolation=cv2.INTER_NEAREST) + drawn
    found = cv2.imread(str(tmp_path / "out" / "merged" / "b.2.png"))
    assert np.array_equal(found, expected)
    assert (tmp_path / "out" / "merged" / "a.jpg").is_file()


def test_import_of_bgr_weights_takes_rgb(make_imported, pictures):
    square = square_of(pictures / "a.jpg")
    plain = probs_of(make_imported(BASE), square)
    exchanged = probs_of(make_imported(""), np.ascontiguousarray(square[..., ::-1]))
    np.testing.assert_allclose(exchanged, plain, atol=1e-5)
    assert np.abs(probs_of(make_imported(""), square) - plain).max() > 1e-4


def test_network_of_bgr_gets_what_the_baseline_gives_it(
    make_imported, pictures, tmp_path, run_command
):
    # By default the baseline trains on BGR and infers on RGB.
    infer(run_command, make_imported(""), pictures / "a.jpg", tmp_path / "mixed")
    order = '[dataset]\ncolor_order = "bgr"\n'
    infer(run_command, make_imported(order), pictures / "a.jpg", tmp_path / "bgr")
    infer(run_command, make_imported(BASE), pictures / "a.jpg", tmp_path / "rgb")
    infer(run_command, make_imported(BASE + 'color_order = "bgr"'), pictures, tmp_path / "base")

    def read(name):
        return np.array(Image.open(tmp_path / name / "a.jpg")).astype(int)

    assert np.abs(read("mixed") - read("rgb")).max() <= 2  # the same weights see the same array
    assert np.abs(read("bgr") - read("base")).max() <= 2


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("[infer]\nmask_colorize = True\n", "mask_colorize = True is not ported"),
        ("[dataset]\nimage_normalize = True\n", "so what it writes means nothing"),
    ],
)
def test_what_is_not_ported_is_refused(
    make_imported, pictures, tmp_path, run_command, capsys, sections, message
):
    run = make_imported(sections)
    given = ("--run", run, "--images", pictures, "--output", tmp_path / "out", "--as_baseline")
    assert run_command("infer", *given) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_options_of_ovseg_and_other_runs_are_refused(
    make_imported, make_run, pictures, tmp_path, run_command, capsys
):
    run = make_imported(BASE)
    given = ("--images", pictures, "--output", tmp_path / "out", "--as_baseline")
    assert run_command("infer", "--run", run, *given, "--overlays") != 0
    assert "The baseline has no --overlays" in capsys.readouterr().err
    assert run_command("infer", *given) != 0
    assert "--as_baseline needs --run" in capsys.readouterr().err
    other = make_run(tmp_path / "other")
    assert run_command("infer", "--run", other, *given) != 0
    error = " ".join(capsys.readouterr().err.split())
    assert "has no train_eval_infer.config, which says what the baseline writes" in error
    (other / "train_eval_infer.config").write_text(CONFIG.replace("= 32", "= 64"))
    assert run_command("infer", "--run", other, *given) != 0
    assert "but its configuration of the baseline has 64" in " ".join(
        capsys.readouterr().err.split()
    )
