"""`infer --format`: the files for programs and annotation tools, and the way back to a dataset."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from dicom_files import make_dicom, save_dicom
from ovseg.core.errors import InputError, WriteError
from ovseg.data.prepare.dataset import prepare_dataset
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.data.prepare.sources import Reading
from ovseg.inference import annotation_files
from ovseg.inference.folder import infer_folder
from ovseg.inference.predictor import Predictor

SIZE = 64
ALL = ["png", "npy", "coco", "labelme", "labelstudio", "contours"]
NAMES = ["cyst", "haze", "solid", "mixed"]  # of `category_run`
BIASES = [0, 1.0, 0, 1.6, 1.5]  # of its last layer, so that three of them are found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve pictures of 64 x 64 in two folders, which squares of 64 keep as they are."""
    folder = tmp_path_factory.mktemp("in")
    for number in range(12):
        inner = folder / ("a" if number < 6 else "b")
        inner.mkdir(exist_ok=True)
        Image.fromarray(make_phantom(number, SIZE)[0]).save(inner / f"{number}.png")
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder / "b" / "black.png")
    return folder


@pytest.fixture(scope="module")
def predicted(run, folder, tmp_path_factory) -> Path:
    """All formats of a run of one class, whose masks have components, holes and single pixels."""
    output = tmp_path_factory.mktemp("one") / "out"
    assert infer_folder(run, folder, output, device="cpu", formats=ALL) == (13, [])
    return output


@pytest.fixture(scope="module")
def predicted_categories(category_run, folder, tmp_path_factory) -> Path:
    """All formats of a run for categories that predicts three of the four."""
    parent = tmp_path_factory.mktemp("several")
    checkpoint = shutil.copytree(category_run, parent / "run") / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["network.head.bias"] += torch.tensor(BIASES)
    torch.save(content, checkpoint)
    output = parent / "out"
    assert infer_folder(parent / "run", folder, output, device="cpu", formats=ALL) == (13, [])
    return output


@pytest.fixture
def labels_of(read_png) -> Callable[[Path, str], np.ndarray]:
    """A function that reads the labels of a picture from its mask."""

    def read(output: Path, name: str) -> np.ndarray:
        mask = read_png(output / f"{Path(name).with_suffix('.png')}")
        return mask if (output / "categories.json").exists() else (mask > 0).astype(np.uint8)

    return read


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(params=["predicted", "predicted_categories"])
def output(request) -> Path:
    return request.getfixturevalue(request.param)


def names_of(output: Path) -> list[str]:
    return NAMES if output.parent.name.startswith("several") else ["lesion"]


def test_every_format_is_a_file_of_each_picture_or_of_all(predicted):
    for kind, suffix in (("npy", ".npy"), ("labelme", ".json"), ("contours", ".json")):
        found = {path.relative_to(predicted / kind) for path in (predicted / kind).rglob("*.*")}
        assert len(found) == 13
        assert Path(f"a/0{suffix}") in found
    others = {path.name for path in predicted.iterdir() if path.is_file()}
    assert {"predictions.coco.json", "predictions.labelstudio.json"} <= others
    assert not [name for name in others if name.endswith(".tmp")]


def test_npy_holds_the_labels(output, labels_of):
    for path in (output / "npy").rglob("*.npy"):
        labels = np.load(path)
        assert labels.dtype == np.uint8
        assert np.array_equal(labels, labels_of(output, str(path.relative_to(output / "npy"))))


def test_contours_are_those_of_the_prediction(run, predicted, folder):
    prediction = Predictor.load(run, "cpu").predict(folder / "a" / "3.png")
    content = read_json(predicted / "contours" / "a" / "3.json")
    assert (content["picture"], content["width"], content["height"]) == ("a/3.png", SIZE, SIZE)
    assert content["frame"] is None
    assert [found["category"] for found in content["contours"]] == (
        ["lesion"] * len(prediction.contours)
    )
    for found, contour in zip(content["contours"], prediction.contours, strict=True):
        assert found["points"] == contour.tolist()


def test_coco_is_read_by_pycocotools_pixel_for_pixel(output, labels_of, capsys):
    coco = COCO(output / "predictions.coco.json")
    assert [category["name"] for category in coco.cats.values()] == names_of(output)
    assert len(coco.imgs) == 13
    table = pd.read_csv(output / "predictions.csv", index_col="mask")
    for number, image in coco.imgs.items():
        assert (image["height"], image["width"]) == (SIZE, SIZE)
        drawn = np.zeros((SIZE, SIZE), np.uint8)
        for annotation in coco.imgToAnns[number]:
            mask = coco.annToMask(annotation) > 0
            assert annotation["area"] == mask.sum()
            assert annotation["iscrowd"] == 0
            assert annotation["score"] == table.loc[image["file_name"], "confidence"]
            drawn[mask] = annotation["category_id"]
        assert np.array_equal(drawn, labels_of(output, image["file_name"]))


def test_coco_has_an_instance_of_each_component(predicted):
    coco = read_json(predicted / "predictions.coco.json")
    table = pd.read_csv(predicted / "predictions.csv")
    assert len(coco["annotations"]) == table["components"].sum() > 13
    numbers = [annotation["id"] for annotation in coco["annotations"]]
    assert numbers == list(range(1, len(numbers) + 1))


def test_labelme_names_its_picture_and_joins_the_polygons_of_a_component(predicted, folder):
    path = predicted / "labelme" / "a" / "0.json"
    content = read_json(path)
    assert (path.parent / content["imagePath"]).resolve() == (folder / "a" / "0.png").resolve()
    assert content["imageData"] is None
    assert (content["imageHeight"], content["imageWidth"]) == (SIZE, SIZE)
    assert {shape["shape_type"] for shape in content["shapes"]} == {"polygon"}
    groups = {shape["group_id"] for shape in content["shapes"]}
    row = pd.read_csv(predicted / "predictions.csv", index_col="mask").loc["a/0.png"]
    assert groups == set(range(1, row["components"] + 1))


def test_contours_of_a_cine_say_which_frame(run, tmp_path):
    frames = np.stack([make_phantom(number, SIZE)[0] for number in range(3)])
    path = save_dicom(tmp_path / "cine.dcm", make_dicom(frames))
    infer_folder(run, path, tmp_path / "out", device="cpu", formats=["contours"], frame_step=2)
    found = [read_json(path) for path in sorted((tmp_path / "out" / "contours").iterdir())]
    assert [(content["picture"], content["frame"]) for content in found] == [
        ("cine.dcm", 1),
        ("cine.dcm", 3),
    ]
    assert pd.read_csv(tmp_path / "out" / "predictions.csv")["frame"].tolist() == [1, 3]


def test_labelstudio_predicts_tasks_in_percent(output, folder):
    tasks = read_json(output / "predictions.labelstudio.json")
    assert tasks[0]["data"] == {"image": f"/data/local-files/?d={folder.name}/a/0.png"}
    assert len(tasks) == 13
    used = set()
    for task in tasks:
        [prediction] = task["predictions"]
        assert 0 <= prediction["score"] <= 1
        for region in prediction["result"]:
            assert region["type"] == "polygonlabels"
            assert (region["original_width"], region["original_height"]) == (SIZE, SIZE)
            points = np.array(region["value"]["points"])
            assert points.min() >= 0
            assert points.max() <= 100
            used |= set(region["value"]["polygonlabels"])
    assert used <= set(names_of(output))
    assert len(used) == (3 if names_of(output) == NAMES else 1)


def test_labelstudio_finds_each_picture_below_the_parent_of_its_folder(run, tmp_path, monkeypatch):
    """Its root of local files may not be the storage itself, the pictures' folder."""
    for name in ("first set/1 #.png", "second/a/1.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        Image.fromarray(make_phantom(1, SIZE)[0]).save(path)

    def names(sources: list[Path], output: Path) -> list[str]:
        options = {"recursive": True, "formats": ["labelstudio"], "overwrite": True}
        infer_folder(run, sources, output, device="cpu", **options)
        tasks = read_json(output / "predictions.labelstudio.json")
        urls = [task["data"]["image"] for task in tasks]
        assert all(url.startswith("/data/local-files/?d=") for url in urls)
        assert not any("#" in url for url in urls)
        return [unquote(url.partition("?d=")[2]) for url in urls]

    several = names([tmp_path / "first set", tmp_path / "second"], tmp_path / "out")
    assert several == ["first set/1 #.png", "second/a/1.png"]
    assert all((tmp_path / name).is_file() for name in several)
    monkeypatch.chdir(tmp_path / "second" / "a")
    assert names([Path()], tmp_path / "out") == ["a/1.png"]
    assert names([Path("..")], tmp_path / "out") == ["second/a/1.png"]


# The way back


@pytest.mark.parametrize("kind", ["labelme", "predictions.coco.json"])
def test_predictions_of_other_folders_are_not_drawn_on_pictures_of_their_names(
    run, tmp_path, run_command, capsys, read_png, kind
):
    for number in range(20):
        path = tmp_path / "rec" / ("a" if number < 10 else "b") / f"s{number % 10}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_phantom(number, SIZE)[0]).save(path)
    output = tmp_path / "out"
    infer_folder(
        run, tmp_path / "rec", output, device="cpu", recursive=True, formats=["labelme", "coco"]
    )
    capsys.readouterr()
    command = ["prepare_data", "--output", tmp_path / "dataset", "--size", SIZE]
    command += ["--allow_leakage", "--unmatched", "empty"]
    assert run_command(*command, "--source", output / kind, "--images", tmp_path / "rec" / "a") == 2
    error = capsys.readouterr().err
    assert "10 pictures in" in error
    assert "rec/b/s0.png" in error if kind == "labelme" else "coco.json: b/s0.png" in error
    assert not (tmp_path / "dataset").exists()

    assert run_command(*command, "--source", output / kind, "--images", tmp_path / "rec") == 0
    items = read_json(tmp_path / "dataset" / "manifest.json")["items"]
    assert len(items) == 20
    for item in items:
        mask = read_png(tmp_path / "dataset" / item["split"] / "masks" / f"{item['stem']}.png")
        assert np.array_equal(mask, read_png(output / item["source"]))


def test_corrected_labelme_beside_the_predicted_coco_is_a_question(predicted, folder, tmp_path):
    reading = Reading(images=folder)
    message = r"2 layouts: coco .*predictions.coco.json.*, labelme \(such as labelme/./\d+.json\)"
    with pytest.raises(InputError, match=message):
        prepare_dataset(predicted, tmp_path / "dataset", reading=reading)


@pytest.fixture
def check_round_trip(output, folder, tmp_path, labels_of, read_png) -> Callable[..., dict]:
    """A function that prepares a dataset of annotations and compares it with the predictions."""

    def check(source: Path, **options) -> dict:
        several = names_of(output) == NAMES
        reading = Reading(images=folder, categories=several)
        manifest = prepare_dataset(
            source,
            tmp_path / "dataset",
            size=SIZE,
            reading=reading,
            allow_leakage=True,
            overwrite=True,
            **options,
        )
        kind = "categories" if several else "masks"
        names = [None, *manifest["categories"]]
        for item in manifest["items"]:
            found = read_png(tmp_path / "dataset" / item["split"] / kind / f"{item['stem']}.png")
            expected = labels_of(output, item["source"])
            if not several:
                assert np.array_equal(found > 0, expected > 0)
                continue
            for number in np.unique(expected[expected > 0]):
                category = names.index(NAMES[number - 1])
                assert np.array_equal(found == category, expected == number)
        return manifest

    return check


def test_labelme_becomes_the_dataset_of_the_predicted_masks(output, check_round_trip):
    manifest = check_round_trip(output / "labelme")
    assert manifest["layout"] == "labelme"
    assert len(manifest["items"]) == 13
    assert manifest["failures"] == []
    assert manifest["left_out"] == {}


def test_coco_becomes_the_dataset_of_the_predicted_masks(output, check_round_trip):
    manifest = check_round_trip(output, layout="coco", unmatched="empty")
    assert len(manifest["items"]) == 13
    assert manifest["failures"] == []


def test_corrected_polygon_of_labelme_is_in_the_dataset(predicted, folder, tmp_path, read_png):
    source = shutil.copytree(predicted / "labelme", tmp_path / "labelme")
    content = read_json(source / "a" / "0.json")
    # A person removes all shapes and draws one of 20 x 12 pixels.
    corrected = {"label": "lesion", "points": [[10, 8], [30, 8], [30, 20], [10, 20]]}
    content["shapes"] = [{**corrected, "shape_type": "polygon", "flags": {}, "group_id": None}]
    (source / "a" / "0.json").write_text(json.dumps(content))
    manifest = prepare_dataset(
        source,
        tmp_path / "dataset",
        size=SIZE,
        reading=Reading(images=folder),
        allow_leakage=True,
    )
    [item] = [item for item in manifest["items"] if item["source"] == "a/0.png"]
    mask = read_png(tmp_path / "dataset" / item["split"] / "masks" / f"{item['stem']}.png")
    expected = np.zeros((SIZE, SIZE), bool)
    expected[8:20, 10:30] = True
    assert np.array_equal(mask > 0, expected)


@pytest.mark.parametrize("file_name", ["/data/local-files/?d={}", "../in/{}"])
def test_coco_of_labelstudio_becomes_the_dataset_of_the_predicted_masks(
    output, check_round_trip, tmp_path, file_name
):
    """What its converter (label-studio-sdk 2.1.2) makes of polygons: percent to pixels."""
    images = []
    annotations = []
    names = names_of(output)
    tasks = read_json(output / "predictions.labelstudio.json")
    for number, task in enumerate(tasks):
        name = task["data"]["image"].partition("?d=")[2]
        image = {"id": number, "file_name": file_name.format(name), "width": SIZE, "height": SIZE}
        images.append(image)
        for region in task["predictions"][0]["result"]:
            points = [share / 100 * SIZE for point in region["value"]["points"] for share in point]
            category = names.index(region["value"]["polygonlabels"][0])
            annotation = {"image_id": number, "category_id": category, "segmentation": [points]}
            annotations.append(annotation)
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "result.json").write_text(json.dumps(content))
    manifest = check_round_trip(tmp_path / "export", unmatched="empty")
    assert len(manifest["items"]) == 13


def test_images_beside_the_source_are_for_annotation_files(tmp_path, predicted, folder):
    with pytest.raises(InputError, match="--images has no meaning for the layout folders"):
        prepare_dataset(
            predicted, tmp_path / "out", layout="folders", reading=Reading(images=folder)
        )
    with pytest.raises(InputError, match="There is no folder .*absent"):
        prepare_dataset(predicted, tmp_path / "out", reading=Reading(images=tmp_path / "absent"))


# Interruptions and mistakes


def test_interrupted_call_continues_and_leaves_no_half_file(
    run, folder, tmp_path, monkeypatch, capsys, predicted
):
    calls = []

    def fail(mask):
        calls.append(mask)
        if len(calls) > 4:
            raise WriteError("Cannot write x: No space left on device.")
        return []

    monkeypatch.setattr(annotation_files, "find_components", fail)
    with pytest.raises(WriteError, match="The same command continues"):
        infer_folder(run, folder, tmp_path / "out", device="cpu", formats=ALL)
    assert not list(tmp_path.rglob("*.coco.json"))
    assert not list(tmp_path.rglob("*.labelstudio.json"))
    monkeypatch.undo()
    assert infer_folder(run, folder, tmp_path / "out", device="cpu", formats=ALL) == (13, [])
    assert "Continuing: 13 of 13 masks were written before." in capsys.readouterr().out
    for name in ("predictions.coco.json", "predictions.labelstudio.json", "labelme/a/0.json"):
        expected = (predicted / name).read_text()
        # The place of the pictures differs.
        found = (tmp_path / "out" / name).read_text()
        if "labelme" in name:
            assert read_json(tmp_path / "out" / name)["shapes"] == json.loads(expected)["shapes"]
        else:
            assert found == expected


def test_picture_that_can_not_be_read_is_in_no_file(run, folder, tmp_path):
    images = shutil.copytree(folder / "a", tmp_path / "images")
    (images / "0.png").write_bytes(b"no picture")
    count, [failure] = infer_folder(run, images, tmp_path / "out", device="cpu", formats=ALL)
    assert count == 5
    assert "0.png" in failure
    coco = read_json(tmp_path / "out" / "predictions.coco.json")
    assert [image["file_name"] for image in coco["images"]] == [f"{n}.png" for n in range(1, 6)]
    assert len(list((tmp_path / "out" / "labelme").iterdir())) == 5


def test_annotation_tools_open_no_dicom(run, tmp_path, run_command, capsys):
    path = save_dicom(tmp_path / "one.dcm", make_dicom(make_phantom(0, SIZE)[0]))
    command = ["infer", "--run", run, "--images", path, "--output", tmp_path / "out"]
    assert run_command(*command, "--format", "npy", "coco", "labelme") == 2
    error = capsys.readouterr().err
    assert "--format coco labelme names pictures for annotation tools, which open no DICOM" in error
    assert not (tmp_path / "out").exists()
    assert run_command(*command, "--format", "npy", "contours") == 0
    assert (tmp_path / "out" / "npy" / "one.npy").is_file()
    assert (tmp_path / "out" / "contours" / "one.json").is_file()
