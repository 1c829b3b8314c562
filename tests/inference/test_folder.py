"""`infer_folder` and the command `infer`: what is written, resumed and refused."""

import csv
import errno
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ovseg.core.drawing import LINE_HEIGHT
from ovseg.core.errors import InputError, WriteError
from ovseg.core.files import write_image
from ovseg.inference import engine_choice
from ovseg.inference import folder as folder_module
from ovseg.inference.engines import ENGINES
from ovseg.inference.folder import infer_folder
from ovseg.inference.labels import Postprocessing
from ovseg.inference.predictor import Predictor


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

        monkeypatch.setattr(folder_module, "write_image", write)

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
    predict = Predictor.predict
    predicted = []

    def stop_at_the_third(self, pictures, *options):
        predicted.append(pictures)
        if len(predicted) == 3:
            raise KeyboardInterrupt
        return predict(self, pictures, *options)

    monkeypatch.setattr(Predictor, "predict", stop_at_the_third)
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
