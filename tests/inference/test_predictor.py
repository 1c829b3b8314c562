"""Predictions of a run in Python and as the files of `ovseg infer`."""

import csv
import errno
import itertools
import math
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ovseg.core.drawing import LINE_HEIGHT
from ovseg.core.errors import InputError, WriteError
from ovseg.core.files import write_image
from ovseg.core.runs import RunFolder
from ovseg.data.pictures import read_image
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.inference import engine_choice
from ovseg.inference import predictor as predictor_module
from ovseg.inference.engines import ENGINES, EngineKind
from ovseg.inference.labels import Postprocessing
from ovseg.inference.predictor import (
    Prediction,
    Predictor,
    infer_folder,
    load_network,
    load_picture,
)
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


def test_predictions_are_those_that_infer_writes(run, images, tmp_path, read_png):
    infer_folder(run, images, tmp_path / "out", overlays=True, probabilities=True, device="cpu")
    paths = sorted(images.iterdir())
    predictions = Predictor.load(run, "cpu").predict(paths)
    for path, prediction in zip(paths, predictions, strict=True):
        name = f"{path.stem}.png"
        mask = read_png(tmp_path / "out" / name)
        probs = read_png(tmp_path / "out" / "probabilities" / name)
        overlay = read_png(tmp_path / "out" / "overlays" / name)
        assert np.array_equal(prediction.labels * 255, mask)
        assert np.array_equal(np.round(prediction.probs * 65535), probs)
        assert np.array_equal(prediction.overlay(path), overlay)


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


def test_calibrated_engine_writes_the_masks_of_torch(
    run, images, tmp_path, monkeypatch, capsys, read_png
):
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    monkeypatch.delitem(ENGINES, "compile")  # half a minute of compilation
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_choice, "LARGEST_GAIN", math.inf)  # few pictures are worth it, too
    for engine in ("torch", "auto"):
        output = tmp_path / engine
        infer_folder(run, images, output, probabilities=True, engine=engine, device="cpu")
    for stem in "abcd":
        by_torch = read_png(tmp_path / "torch" / "probabilities" / f"{stem}.png").astype(int)
        chosen = read_png(tmp_path / "auto" / "probabilities" / f"{stem}.png").astype(int)
        assert np.abs(by_torch - chosen).max() <= 7  # of 65,535: 1e-4
    printed = capsys.readouterr().out
    assert printed.count("chosen") == 1
    assert "onnxruntime" in printed


# infer_folder and the command


def test_one_mask_per_picture_at_its_own_size(run, images, tmp_path, run_command, read_png):
    command = ["infer", "--run", run, "--images", images, "--output", tmp_path / "out"]
    options = ["--device", "cpu", "--overlays", "--probabilities", "--batch-size", "3"]
    assert run_command(*command, *options) == 0
    for path in images.iterdir():
        name = f"{path.stem}.png"
        size = read_png(path).shape[:2]
        mask = read_png(tmp_path / "out" / name)
        probs = read_png(tmp_path / "out" / "probabilities" / name) / 65535
        assert mask.shape == probs.shape == size
        assert read_png(tmp_path / "out" / "overlays" / name).shape[:2] == size
        assert set(np.unique(mask)) <= {0, 255}
        rounded = np.abs(probs - 0.5) < 1e-4
        assert ((mask > 0) == (probs > 0.5))[~rounded].all()


def test_infer_takes_an_ensemble(ensemble, images, tmp_path):
    count, failures = infer_folder(ensemble, images, tmp_path / "out", device="cpu")
    assert (count, failures) == (4, [])
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_masks_of_categories_are_ids_with_a_legend_below_the_overlay(
    category_run, images, tmp_path, read_png
):
    infer_folder(category_run, images, tmp_path / "out", overlays=True, device="cpu")
    assert '"1": "cyst"' in (tmp_path / "out" / "categories.json").read_text()
    assert read_png(tmp_path / "out" / "a.png").max() <= 4
    overlay = read_png(tmp_path / "out" / "overlays" / "a.png")
    assert overlay.shape[0] > 64
    assert overlay.shape[1] == 64


def test_unreadable_picture_is_reported_and_the_others_are_written(
    run, images, tmp_path, run_command, capsys
):
    folder = shutil.copytree(images, tmp_path / "in")
    (folder / "bad.png").write_bytes(b"")
    command = ["infer", "--run", run, "--images", folder, "--output", tmp_path / "out"]
    assert run_command(*command, "--device", "cpu") == 1
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    assert "bad.png cannot be read" in capsys.readouterr().err


def test_only_unreadable_pictures_leave_no_output(run, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    with pytest.raises(InputError, match="None of the 1 pictures .* can be read: .*bad.png"):
        infer_folder(run, tmp_path / "in", tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_earlier_masks_are_replaced_only_with_overwrite(run, images, tmp_path):
    infer_folder(run, images, tmp_path / "out", device="cpu")
    with pytest.raises(InputError, match="add --overwrite"):
        infer_folder(run, images, tmp_path / "out", device="cpu")
    infer_folder(run, images, tmp_path / "out", device="cpu", overwrite=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"device": "quantum"}, "Device 'quantum' cannot be used"),
        ({"images": "gone"}, "There is no file or folder gone"),
        ({"run": "gone"}, "There is no folder gone"),
        ({"run": "gone", "engine": "steam"}, "Unknown engine 'steam'. Choose one of: auto, com"),
    ],
)
def test_mistake_is_an_error_that_leaves_no_output(run, images, tmp_path, arguments, message):
    output = tmp_path / "out"
    settings = {"run": run, "images": images, "output": output, "device": "cpu", **arguments}
    with pytest.raises(InputError, match=message):
        infer_folder(**settings)
    assert not output.exists()


def test_mistake_on_the_command_line_is_one_line(run, images, tmp_path, run_command, capsys):
    command = ["infer", "--run", run, "--images", images, "--output", tmp_path / "out"]
    assert run_command(*command, "--engine", "steam") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: Unknown engine 'steam'.")


def test_postprocessing_that_is_applied_is_printed(
    run, images, tmp_path, capsys, write_postprocessing
):
    folder = shutil.copytree(run, tmp_path / "run")
    write_postprocessing(folder, Postprocessing(threshold=0.3))
    infer_folder(folder, images, tmp_path / "plain", device="cpu", postprocessing=False)
    assert "Post-processing" not in capsys.readouterr().out
    infer_folder(folder, images, tmp_path / "out", device="cpu")
    assert "Post-processing of the run: threshold 0.3" in capsys.readouterr().out


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


@pytest.fixture
def full_disk(monkeypatch) -> Callable[[int, int], None]:
    """A function that lets the system refuse to write masks after some of them."""

    def fill(after: int, code: int = errno.ENOSPC) -> None:
        written = []

        def write(path, image):
            written.append(path)
            if len(written) > after:
                cause = OSError(code, os.strerror(code))
                raise WriteError(f"Cannot write {path}: {cause.strerror}.") from cause
            write_image(path, image)

        monkeypatch.setattr(predictor_module, "write_image", write)

    return fill


def test_full_disk_is_one_line_and_the_same_command_continues(
    run, images, tmp_path, run_command, capsys, full_disk, monkeypatch, read_png
):
    output = tmp_path / "out"
    command = ["infer", "--run", run, "--images", images, "--device", "cpu", "--batch_size", "1"]
    full_disk(2)
    assert run_command(*command, "--output", output) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: Cannot write ")
    assert "No space left on device. The same command continues" in lines[0]
    assert not output.exists()

    monkeypatch.undo()
    assert run_command(*command, "--output", output) == 0
    printed = capsys.readouterr().out
    assert "Continuing: 2 of 4 masks were written before." in printed
    assert "4 masks (0 and 255) written" in printed
    infer_folder(run, images, tmp_path / "undisturbed", device="cpu", batch_size=1)
    for stem in "abcd":
        expected = read_png(tmp_path / "undisturbed" / f"{stem}.png")
        assert np.array_equal(read_png(output / f"{stem}.png"), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "undisturbed"]


def test_ctrl_c_is_one_line_and_the_same_command_continues(
    run, images, tmp_path, run_command, capsys, monkeypatch
):
    command = ["infer", "--run", run, "--images", images, "--output", tmp_path / "out"]
    command += ["--device", "cpu", "--batch_size", "1"]
    predict = predictor_module.Predictor.predict
    predicted = []

    def stop_at_the_third(self, pictures, *options):
        predicted.append(pictures)
        if len(predicted) == 3:
            raise KeyboardInterrupt
        return predict(self, pictures, *options)

    monkeypatch.setattr(predictor_module.Predictor, "predict", stop_at_the_third)
    assert run_command(*command) == 130
    stopped = "error: stopped by Ctrl-C. The same command continues where it stopped.\n"
    assert capsys.readouterr().err == stopped
    assert not (tmp_path / "out").exists()

    assert run_command(*command) == 0
    printed = capsys.readouterr().out
    assert "Continuing: 2 of 4 masks were written before." in printed
    assert "4 masks (0 and 255) written" in printed


def test_other_options_and_changed_pictures_start_anew(run, images, tmp_path, full_disk, capsys):
    folder = shutil.copytree(images, tmp_path / "in")
    changes = (
        {"batch_size": 2},
        {"overlays": True},
        {"tiles": 0.25},
        {"postprocessing": False},
        {},
    )
    for change in changes:
        settings = {"device": "cpu", "batch_size": 1}
        full_disk(1)
        with pytest.raises(WriteError):
            infer_folder(run, folder, tmp_path / "out", **settings)
        full_disk(100)
        if not change:
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
        infer_folder(run, folder, tmp_path / "out", **{**settings, **change})
        continued = "Continuing" in capsys.readouterr().out
        # Without post-processing to leave out, the masks are the same.
        assert continued == (change == {"postprocessing": False})
        shutil.rmtree(tmp_path / "out")


def test_mask_whose_name_is_refused_is_a_failure_of_that_picture(
    run, images, tmp_path, run_command, capsys, full_disk
):
    full_disk(3, errno.ENAMETOOLONG)
    command = ["infer", "--run", run, "--images", images, "--output", tmp_path / "out"]
    assert run_command(*command, "--device", "cpu") == 1
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    assert ".png can be made: File name too long." in capsys.readouterr().err


def test_pictures_and_folders_are_taken_together(run, images, tmp_path, run_command):
    other = shutil.copy(images / "a.png", tmp_path / "z.png")
    command = ["infer", "--run", run, "--output", tmp_path / "out", "--device", "cpu"]
    assert run_command(*command, "--images", other, images, images / "a.png") == 0
    masks = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert masks == ["a.png", "b.png", "c.png", "d.png", "z.png"]


@pytest.fixture
def nested(images, tmp_path) -> Path:
    """Folders with pictures of one stem, a hidden one and an empty one."""
    for folder in ("one", "two/inner", ".hidden", "empty"):
        (tmp_path / "deep" / folder).mkdir(parents=True)
    for folder in ("one", "two/inner", ".hidden"):
        shutil.copy(images / "a.png", tmp_path / "deep" / folder / "scan.png")
    return tmp_path / "deep"


def test_recursive_keeps_the_structure_of_folders(run, nested, tmp_path):
    output = tmp_path / "out"
    count, failures = infer_folder(
        run, nested, output, overlays=True, probabilities=True, device="cpu", recursive=True
    )
    assert (count, failures) == (2, [])
    found = sorted(str(path.relative_to(output)) for path in output.rglob("*.png"))
    masks = ["one/scan.png", "two/inner/scan.png"]
    expected = [*masks]
    for folder in ("overlays", "probabilities"):
        expected += [f"{folder}/{mask}" for mask in masks]
    assert found == sorted(expected)


def test_folders_in_a_folder_are_named_where_they_are_not_asked_for(
    run, nested, tmp_path, images, capsys
):
    assert infer_folder(run, nested, tmp_path / "all", device="cpu")[0] == 2
    message = "holds 3 folders, whose pictures are taken (empty, one, two), because it has none"
    assert message in capsys.readouterr().err
    shutil.copy(images / "a.png", nested / "top.png")
    assert infer_folder(run, nested, tmp_path / "out", device="cpu")[0] == 1
    message = (
        "holds 3 folders, whose pictures are not looked for (empty, one, two): add --recursive"
    )
    assert message in capsys.readouterr().err


def test_files_that_are_no_pictures_are_counted(run, images, tmp_path, capsys):
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "notes.txt").touch()
    (folder / "cine.mp4").touch()
    infer_folder(run, folder, tmp_path / "out", device="cpu")
    assert f"{folder}: 2 files were left out: 1 .mp4, 1 .txt." in capsys.readouterr().err


def test_two_pictures_of_one_mask_are_an_error(run, nested, tmp_path):
    sources = [nested / "one", nested / "two" / "inner"]
    with pytest.raises(InputError, match="scan.png .*one/scan.png and .*inner/scan.png.*--recurs"):
        infer_folder(run, sources, tmp_path / "out", device="cpu")


def test_overlay_and_mask_of_one_name_are_an_error(run, images, tmp_path):
    for folder in (".", "overlays"):
        (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(images / "a.png", tmp_path / "in" / folder / "a.png")
    source = tmp_path / "in"
    with pytest.raises(InputError, match="1 files would be made of two pictures.*overlays/a.png"):
        infer_folder(run, source, tmp_path / "out", True, device="cpu", recursive=True)


def test_output_among_the_pictures_is_an_error_with_recursive(run, nested):
    with pytest.raises(InputError, match="would be taken for pictures"):
        infer_folder(run, nested, nested / "out", device="cpu", recursive=True)


def test_pipe_is_no_picture(run, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="pipe.png is neither a file nor a folder"):
        infer_folder(run, tmp_path / "pipe.png", tmp_path / "out", device="cpu")


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


def test_map_of_uncertainty_lies_beside_the_overlay(
    run, images, tmp_path, run_command, capsys, read_png
):
    output = tmp_path / "out"
    command = ["infer", "--run", run, "--images", images, "--output", output, "--device", "cpu"]
    assert run_command(*command, "--overlays", "--uncertainty") == 0
    assert "has one network and no flips: the uncertainty compares" in capsys.readouterr().out
    expected = [f"{stem}{end}.png" for stem in "abcd" for end in ("", "_uncertainty")]
    assert sorted(path.name for path in (output / "overlays").iterdir()) == sorted(expected)
    drawn = read_png(output / "overlays" / "b_uncertainty.png")
    assert drawn.shape == (50 + 2 * LINE_HEIGHT, 64, 3)


# predictions.csv and flags


def read_table(output: Path) -> list[dict[str, str]]:
    with open(output / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_table_says_what_each_prediction_is(run, images, tmp_path, capsys, write_postprocessing):
    paths = [images / name for name in ("a.png", "b.jpg", "c.bmp", "d.tif")]
    predictions = Predictor.load(run, "cpu").predict(paths)
    order = sorted(prediction.confidence for prediction in predictions)
    threshold = (order[1] + order[2]) / 2
    folder = shutil.copytree(run, tmp_path / "run")
    write_postprocessing(folder, Postprocessing(flag_confidence=threshold))
    infer_folder(folder, images, tmp_path / "out", device="cpu")

    flagged = []
    for path, prediction, row in zip(paths, predictions, read_table(tmp_path / "out"), strict=True):
        assert (row["picture"], row["mask"]) == (str(path), f"{path.stem}.png")
        assert int(row["area_pixels"]) == prediction.area == prediction.labels.sum()
        share = 100 * prediction.labels.mean()
        assert float(row["area_percent"]) == pytest.approx(share, abs=1e-4)
        count = cv2.connectedComponents(prediction.labels, connectivity=8)[0] - 1
        assert int(row["components"]) == count
        assert float(row["confidence"]) == pytest.approx(prediction.confidence, abs=1e-4)
        assert float(row["largest_probability"]) == pytest.approx(prediction.probs.max(), abs=1e-4)
        assert row["flag"] == ("yes" if prediction.confidence <= threshold else "no")
        if row["flag"] == "yes":
            flagged.append(str(path))
    assert len(flagged) == 2
    printed = capsys.readouterr().out
    assert f"2 of 4 pictures are flagged (confidence {threshold:g} or less): look at" in printed
    assert ", ".join(flagged) in printed


def test_without_a_threshold_no_picture_is_flagged_and_the_remedy_is_said(
    run, images, tmp_path, capsys
):
    infer_folder(run, images, tmp_path / "out", device="cpu")
    assert {row["flag"] for row in read_table(tmp_path / "out")} == {""}
    assert f"ovseg postprocess --run {run} chooses one" in capsys.readouterr().out


def test_unreadable_picture_has_no_row(run, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "in")
    (folder / "bad.png").write_bytes(b"")
    infer_folder(run, folder, tmp_path / "out", device="cpu")
    assert [Path(row["picture"]).stem for row in read_table(tmp_path / "out")] == list("abcd")


def test_interrupted_infer_keeps_the_rows_of_what_was_done(run, images, tmp_path, full_disk):
    settings = {"device": "cpu", "batch_size": 1}
    full_disk(2)
    with pytest.raises(WriteError):
        infer_folder(run, images, tmp_path / "out", **settings)
    full_disk(100)
    infer_folder(run, images, tmp_path / "out", **settings)
    infer_folder(run, images, tmp_path / "undisturbed", **settings)
    assert read_table(tmp_path / "out") == read_table(tmp_path / "undisturbed")
    assert len(read_table(tmp_path / "out")) == 4
