"""Predictions of a run in Python."""

import itertools
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.core.runs import RunFolder
from ovseg.data.pictures import read_image
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.inference.engines import ENGINES, EngineKind
from ovseg.inference.labels import Postprocessing
from ovseg.inference.predictor import Prediction, Predictor, load_network, load_picture
from ovseg.training.task import SegmentationTask


@pytest.fixture
def predictor(run) -> Predictor:
    return Predictor.load(run, "cpu")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Three pictures of different sizes."""
    return [make_phantom(1, 64)[0], make_phantom(2, 64)[0][:40], make_phantom(3, 64)[0][:, :50]]


# Predictor.predict


def test_one_array_gives_one_prediction_at_its_own_size(predictor):
    prediction = predictor.predict(make_phantom(1, 64)[0][:40])
    assert prediction.labels.shape == (40, 64)
    assert prediction.labels.dtype == np.uint8
    assert prediction.probs.shape == (40, 64)
    assert prediction.probs.dtype == np.float32
    assert np.array_equal(prediction.labels, prediction.probs > 0.5)
    assert 0 < prediction.labels.sum() < prediction.labels.size


def test_path_is_predicted_as_the_array_that_it_holds(predictor, images):
    of_array = predictor.predict(read_image(images / "b.jpg"))
    for path in (images / "b.jpg", str(images / "b.jpg")):
        assert np.array_equal(predictor.predict(path).probs, of_array.probs)


def test_grey_array_is_predicted_as_three_equal_channels(predictor):
    grey = make_phantom(1, 64)[0][..., 0]
    of_grey = predictor.predict(grey)
    of_rgb = predictor.predict(np.stack([grey, grey, grey], axis=2))
    assert np.array_equal(of_grey.probs, of_rgb.probs)


@pytest.mark.parametrize("kind", [list, tuple])
def test_list_and_tuple_give_a_list_in_their_order(predictor, pictures, images, kind):
    mixed = [pictures[0], images / "a.png", str(images / "b.jpg"), pictures[1]]
    together = predictor.predict(kind(mixed))
    assert isinstance(together, list)
    for prediction, picture in zip(together, mixed, strict=True):
        alone = predictor.predict(picture)
        assert np.allclose(prediction.probs, alone.probs, atol=1e-6)


def test_stacked_pictures_give_a_list(predictor):
    stack = np.stack([make_phantom(1, 64)[0], make_phantom(2, 64)[0]])
    predictions = predictor.predict(stack)
    assert isinstance(predictions, list)
    assert len(predictions) == 2


def test_no_pictures_give_no_predictions(predictor):
    assert predictor.predict([]) == []
    assert list(predictor.predict(iter([]))) == []


def test_generator_gives_the_predictions_of_a_list(predictor, pictures):
    lazily = predictor.predict((picture for picture in pictures), batch_size=2)
    assert isinstance(lazily, Iterator)
    for found, expected in zip(lazily, predictor.predict(pictures, 2), strict=True):
        assert np.array_equal(found.probs, expected.probs)


def test_any_other_iterable_is_read_lazily(predictor, pictures):
    named = dict(enumerate(pictures))
    assert len(list(predictor.predict(named.values()))) == 3


def test_generator_of_a_thousand_pictures_keeps_two_batches_of_them(predictor):
    living = weakref.WeakSet()
    most = 0

    class Picture(np.ndarray):
        """An array that a set can hold."""

        __hash__ = object.__hash__

    def scan():
        nonlocal most
        for number in range(1000):
            picture = np.full((16, 16, 3), number % 256, np.uint8).view(Picture)
            living.add(picture)
            most = max(most, len(living))
            yield picture
            del picture

    predictions = predictor.predict(scan(), batch_size=8)
    assert len(living) == 0  # nothing is read before it is asked for
    next(predictions)
    assert len(living) <= 9
    assert sum(1 for _ in predictions) == 999
    assert 8 <= most <= 2 * 8 + 1


def test_generator_raises_at_the_picture_that_cannot_be_read(predictor, images):
    paths = [images / "a.png", images / "b.jpg", images / "gone.png"]
    predictions = predictor.predict(iter(paths), batch_size=2)
    assert next(predictions).labels.shape == (64, 64)
    assert next(predictions).labels.shape == (50, 64)
    with pytest.raises(InputError, match=r"gone\.png cannot be read"):
        next(predictions)


def test_pictures_before_one_that_cannot_be_read_are_predicted(predictor, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "in")
    (folder / "bb.png").touch()
    paths = [images / "a.png", images / "b.jpg", images / "gone.png", images / "c.bmp"]
    for source, problem in ((iter(paths), "gone"), (folder, "bb")):
        predictions = predictor.predict(source, batch_size=4)
        assert next(predictions).labels.shape == (64, 64)
        assert next(predictions).labels.shape == (50, 64)
        with pytest.raises(InputError, match=rf"{problem}\.png cannot be read"):
            next(predictions)
        assert list(predictions) == []


def test_folder_may_hold_pictures_of_one_name_and_folders(predictor, tmp_path, capsys):
    """No file is written, so names may be equal."""
    (tmp_path / "inner").mkdir()
    for name in ("a.png", "a.jpg"):
        make_picture(tmp_path / name)
    found = [prediction.path.name for prediction in predictor.predict(tmp_path)]
    assert found == ["a.jpg", "a.png"]
    assert capsys.readouterr().err == ""


def test_folder_gives_the_predictions_of_its_pictures_and_their_paths(predictor, images):
    paths = [images / name for name in ("a.png", "b.jpg", "c.bmp", "d.tif")]
    for folder in (images, str(images)):
        predictions = predictor.predict(folder)
        assert isinstance(predictions, Iterator)
        expected = predictor.predict(paths)
        for found, path, alone in zip(predictions, paths, expected, strict=True):
            assert (found.path, found.frame) == (path, None)
            assert np.array_equal(found.probs, alone.probs)


def test_folder_raises_at_the_picture_that_cannot_be_read(predictor, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "in")
    (folder / "e.png").touch()
    predictions = predictor.predict(folder, batch_size=4)
    assert sum(1 for _ in itertools.islice(predictions, 4)) == 4
    with pytest.raises(InputError, match=r"e\.png cannot be read"):
        next(predictions)


def test_folder_without_pictures_is_an_error_at_once(predictor, tmp_path):
    with pytest.raises(InputError, match="no picture"):
        predictor.predict(tmp_path)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_do_not_change_the_prediction(predictor, pictures, batch_size):
    together = predictor.predict(pictures, batch_size)
    for prediction, picture in zip(together, pictures, strict=True):
        assert np.allclose(prediction.probs, predictor.predict(picture).probs, atol=1e-6)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros(8, np.uint8), r"has the shape \(8,\), expected \(H, W\) in grey"),
        (np.zeros((0, 8), np.uint8), r"has the shape \(0, 8\)"),
        (np.zeros((8, 8, 2), np.uint8), r"has the shape \(8, 8, 2\)"),
        (np.zeros((8, 8), np.uint16), r"is an array of uint16, expected uint8, or float in 0..1"),
        (np.zeros((8, 8, 3), np.int64), "is an array of int64"),
        (np.zeros((8, 8), bool), "is an array of bool"),
        (np.full((8, 8), 255.0), r"of float64 has values from 255 to 255, expected 0..1"),
        (np.full((8, 8), -0.5, np.float32), "of float32 has values from -0.5"),
        (np.full((8, 8), np.nan), "has values from nan"),
        (Image.fromarray(np.zeros((8, 8), np.uint16)), "The picture has mode I;16"),
        (Image.fromarray(np.zeros((8, 8), np.float32)), "The picture has mode F"),
        (None, "is of the type NoneType, expected a path, an image of Pillow or an array of numpy"),
        ([None], "is of the type NoneType"),
        (7, "is of the type int"),
    ],
)
def test_picture_of_another_kind_is_an_error(predictor, picture, message):
    with pytest.raises(InputError, match=message):
        predictor.predict(picture)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_usual_mode_of_pillow_is_a_picture(mode):
    picture = Image.fromarray(make_phantom(3, 32)[0]).convert(mode)
    assert np.array_equal(load_picture(picture), np.array(picture.convert("RGB")))


def test_arrays_of_one_picture_are_the_same():
    image = make_phantom(3, 32)[0]
    grey = image[..., 0]
    expected = np.dstack([grey, grey, grey])
    alpha = np.full_like(grey, 9)
    for picture in (grey, grey[..., None], expected, np.dstack([expected, alpha]), grey / 255):
        found = load_picture(picture)
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected)
    assert np.array_equal(load_picture(expected.astype(np.float32) / 255), expected)


def test_orientation_of_a_photograph_is_applied_from_a_file_and_from_pillow(tmp_path):
    image = make_phantom(3, 32)[0][:20]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(image, -1)
    assert np.array_equal(load_picture(tmp_path / "a.png"), upright)
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(load_picture(picture), upright)
        assert picture.size == (32, 20)


def test_path_without_a_picture_is_an_error(predictor, tmp_path):
    with pytest.raises(InputError, match=r"gone\.png cannot be read"):
        predictor.predict(tmp_path / "gone.png")


def make_picture(path):
    Image.fromarray(make_phantom(1, 64)[0]).save(path)


def test_batch_size_of_zero_is_an_error(predictor, pictures):
    with pytest.raises(InputError, match="batch_size is 0, expected at least 1"):
        predictor.predict(pictures, batch_size=0)


# Prediction.overlay


def test_overlay_marks_the_lesion_in_red(predictor):
    grey = make_phantom(1, 64)[0][..., 0]
    prediction = predictor.predict(grey)
    overlay = prediction.overlay(grey)
    assert overlay.shape == (64, 64, 3)
    assert overlay.dtype == np.uint8
    reddish = overlay[..., 0] > overlay[..., 1]
    assert reddish[prediction.labels == 1].mean() > 0.9
    untouched = (overlay == grey[..., None]).all(axis=2)
    assert untouched[prediction.labels == 0].all()


def test_overlay_of_categories_has_the_size_of_the_picture(category_run):
    image = make_phantom(1, 64)[0]
    prediction = Predictor.load(category_run, "cpu").predict(image)
    assert prediction.categories == ["cyst", "haze", "solid", "mixed"]
    assert prediction.overlay(image).shape == image.shape


def test_overlay_of_another_picture_is_an_error(predictor, pictures):
    prediction = predictor.predict(pictures[0])
    with pytest.raises(InputError, match="The picture has 40 rows and 64 columns, but the pred"):
        prediction.overlay(pictures[1])


# Predictor.load


def test_checkpoint_is_enough(run, pictures):
    of_run = Predictor.load(run, "cpu").predict(pictures[0])
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    of_checkpoint = Predictor.load(checkpoint, "cpu").predict(pictures[0])
    assert np.array_equal(of_checkpoint.probs, of_run.probs)


def test_checkpoint_has_no_postprocessing(run, tmp_path, write_postprocessing):
    folder = shutil.copytree(run, tmp_path / "run")
    write_postprocessing(folder, Postprocessing(threshold=0.3))
    checkpoint = folder / "checkpoints" / "last.ckpt"
    assert Predictor.load(folder, "cpu").postprocessing == Postprocessing(threshold=0.3)
    assert Predictor.load(checkpoint, "cpu").postprocessing == Postprocessing()


def test_postprocessing_is_applied_as_by_hand(run, images, tmp_path, write_postprocessing):
    chosen = Postprocessing(
        ("horizontal", "vertical"), threshold=0.3, keep_largest=True, fill_holes=True
    )
    folder = shutil.copytree(run, tmp_path / "run")
    write_postprocessing(folder, chosen)
    plain = Predictor.load(folder, "cpu", postprocessing=False)

    image = read_image(images / "a.png")
    flipped_probs = []
    for flip in (np.array, np.fliplr, np.flipud, lambda picture: np.rot90(picture, 2)):
        probs = plain.predict(np.ascontiguousarray(flip(image))).probs
        flipped_probs.append(flip(probs))
    expected = np.mean(flipped_probs, axis=0, dtype=np.float32)

    prediction = Predictor.load(folder, "cpu").predict(image)
    assert np.allclose(prediction.probs, expected, atol=1e-4)
    assert np.array_equal(prediction.labels, chosen.labels(prediction.probs[None]))
    assert prediction.labels.any()


# Ensembles


def test_ensemble_predicts_the_average_at_the_pictures_size(run, large_run, ensemble, pictures):
    first = Predictor.load(run, "cpu").predict(pictures)
    second = Predictor.load(large_run, "cpu").predict(pictures)
    together = Predictor.load(ensemble, "cpu").predict(pictures)
    for image, one, other, average in zip(pictures, first, second, together, strict=True):
        assert average.probs.shape == image.shape[:2]
        assert not np.allclose(one.probs, other.probs, atol=1e-3)
        assert np.allclose(average.probs, (one.probs + other.probs) / 2, atol=1e-6)
        assert np.array_equal(average.labels, average.probs > 0.5)


def test_flips_and_engine_are_used_for_every_member(
    ensemble, pictures, monkeypatch, write_postprocessing
):
    sizes = []

    def build(network, image):
        sizes.append(image.shape[-1])
        return network

    monkeypatch.setitem(ENGINES, "counted", EngineKind(build))
    write_postprocessing(ensemble, Postprocessing(("horizontal",)))
    plain = Predictor.load(ensemble, "cpu", postprocessing=False)
    with_flips = Predictor.load(ensemble, "cpu")
    with_flips.engine = "counted"

    for image in pictures:
        found = with_flips.predict(image).probs
        unflipped = plain.predict(image).probs
        flipped = np.fliplr(plain.predict(np.ascontiguousarray(np.fliplr(image))).probs)
        assert np.abs(found - unflipped).max() > 1e-3
        # Letterboxes of odd width are not symmetric, so the average differs a little.
        assert np.abs(found - (unflipped + flipped) / 2).mean() < 0.02
    assert sizes == [32, 48]


# Engines


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_engine_averages_flips_as_torch_does(run, images, engine):
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    pytest.importorskip(engine, reason="needs the extra of this engine")
    postprocessing = Postprocessing(("horizontal", "vertical"))
    paths = sorted(images.iterdir())
    by_torch = Predictor.load(run, "cpu")
    by_engine = Predictor.load(run, "cpu")
    by_torch.postprocessing = postprocessing
    by_engine.postprocessing = postprocessing
    by_engine.engine = engine
    for ours, theirs in zip(by_torch.predict(paths), by_engine.predict(paths), strict=True):
        assert np.abs(ours.probs - theirs.probs).max() < 1e-4


def test_prediction_is_made_without_gradients(predictor):
    network = predictor.members[0].network
    predictor.predict(make_phantom(1, 64)[0])
    assert all(parameter.grad is None for parameter in network.parameters())
    assert isinstance(network, torch.nn.Module)
    assert not network.training


def test_image_of_pillow_is_a_picture(predictor, images):
    of_path = predictor.predict(images / "b.jpg")
    with Image.open(images / "b.jpg") as picture:
        of_image = predictor.predict(picture)
        overlay = of_image.overlay(picture)
    assert np.array_equal(of_path.probs, of_image.probs)
    assert overlay.shape[:2] == of_image.labels.shape


def test_image_of_pillow_of_sixteen_bits_is_an_error():
    with pytest.raises(InputError, match="The picture has mode I;16, expected 8 bits"):
        load_picture(Image.fromarray(np.zeros((4, 4), np.uint16)))


def test_network_of_a_checkpoint_is_that_of_its_task(run):
    path = RunFolder(run).find_checkpoint()
    task = SegmentationTask.load_from_checkpoint(path, weights_only=True)
    ours = load_network(path).state_dict()
    theirs = task.network.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_checkpoint_of_other_weights_is_an_error(run, tmp_path):
    checkpoint = torch.load(RunFolder(run).find_checkpoint(), weights_only=True)
    del checkpoint["state_dict"]["network.head.weight"]
    torch.save(checkpoint, tmp_path / "cut.ckpt")
    with pytest.raises(InputError, match=r"cut\.ckpt holds other weights than its network"):
        Predictor.load(tmp_path / "cut.ckpt", "cpu")


def test_predictor_imports_no_package_that_takes_long_or_may_be_absent():
    names = "{'pytorch_lightning', 'pydicom', 'highdicom'}"
    code = f"import sys, ovseg.inference.predictor; print({names} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_deep_colours_that_pillow_has_not_decoded_are_refused(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 8, 3), 4000, np.uint16))
    with (
        Image.open(tmp_path / "a.png") as picture,
        pytest.raises(InputError, match="The picture has 16 bits a channel"),
    ):
        load_picture(picture)


# Confidence, contours, temperature and uncertainty of a prediction


def make_prediction(labels: np.ndarray, probs: float = 0.8) -> Prediction:
    return Prediction(labels.astype(np.uint8), (labels > 0) * np.float32(probs))


def test_area_and_contours_are_those_of_the_components():
    labels = np.zeros((12, 14))
    labels[1:9, 2:10] = 1
    labels[3:7, 4:8] = 0  # a hole
    labels[4, 5] = 2  # a component of another category in it
    labels[9, 10] = 1  # touches the ring at a corner
    prediction = make_prediction(labels)
    assert prediction.area == 64 - 16 + 1 + 1
    inner, outer = sorted(prediction.contours, key=len)
    assert inner.tolist() == [[5, 4]]  # column, row
    assert outer.shape[1] == 2
    assert outer.min(0).tolist() == [2, 1]
    assert outer.max(0).tolist() == [10, 9]
    for corner in ([2, 1], [9, 1], [2, 8], [10, 9]):
        assert corner in outer.tolist()


def test_empty_prediction_has_no_contour():
    prediction = make_prediction(np.zeros((5, 5)))
    assert (prediction.area, prediction.contours, prediction.confidence) == (0, [], 1.0)


def test_confidence_is_the_dice_that_the_probabilities_expect():
    labels = np.zeros((5, 5))
    labels[0, :2] = 1
    # Two pixels of 0.8: 2 * 1.6 / (2 + 1.6)
    assert make_prediction(labels).confidence == pytest.approx(3.2 / 3.6)


def test_temperature_changes_probabilities_and_no_mask(
    run, pictures, tmp_path, write_postprocessing
):
    folder = shutil.copytree(run, tmp_path / "run")
    write_postprocessing(folder, Postprocessing(threshold=0.3))
    plain = Predictor.load(folder, "cpu").predict(pictures)
    write_postprocessing(folder, Postprocessing(threshold=0.3, temperature=2.0))
    divided = Predictor.load(folder, "cpu").predict(pictures)
    for before, after in zip(plain, divided, strict=True):
        assert np.array_equal(after.labels, before.labels)
        logits = np.log(before.probs / (1 - before.probs))
        assert np.allclose(after.probs, 1 / (1 + np.exp(-logits / 2)), atol=1e-5)
        assert after.confidence < before.confidence


def test_uncertainty_is_the_deviation_of_the_flips(run, pictures, tmp_path, write_postprocessing):
    square = np.ascontiguousarray(pictures[0])
    plain = Predictor.load(run, "cpu")
    views = []
    for flip in (np.array, np.fliplr, np.flipud, lambda picture: np.rot90(picture, 2)):
        views.append(flip(plain.predict(np.ascontiguousarray(flip(square))).probs))

    alone = plain.predict(square, uncertainty=True)
    assert alone.uncertainty.shape == (64, 64)
    assert alone.uncertainty.dtype == np.float32
    assert np.allclose(alone.uncertainty, np.std(views[:2], axis=0), atol=1e-4)
    assert alone.uncertainty.max() > 0.01

    folder = shutil.copytree(run, tmp_path / "run")
    write_postprocessing(folder, Postprocessing(("horizontal", "vertical")))
    flipped = Predictor.load(folder, "cpu").predict(square, uncertainty=True)
    assert np.allclose(flipped.uncertainty, np.std(views, axis=0), atol=1e-4)


def test_uncertainty_of_an_ensemble_is_the_deviation_of_its_members(
    run, large_run, ensemble, pictures
):
    first = Predictor.load(run, "cpu").predict(pictures)
    second = Predictor.load(large_run, "cpu").predict(pictures)
    together = Predictor.load(ensemble, "cpu").predict(pictures, uncertainty=True)
    for one, other, found in zip(first, second, together, strict=True):
        assert np.allclose(found.uncertainty, np.abs(one.probs - other.probs) / 2, atol=1e-6)


def test_uncertainty_changes_nothing_else_and_is_left_out_by_default(predictor, pictures):
    plain = predictor.predict(pictures)
    measured = predictor.predict(pictures, uncertainty=True)
    for without, with_map in zip(plain, measured, strict=True):
        assert without.uncertainty is None
        assert np.array_equal(without.probs, with_map.probs)
        assert np.array_equal(without.labels, with_map.labels)
