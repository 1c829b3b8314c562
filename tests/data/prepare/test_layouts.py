"""Each layout that people have, drawn small and prepared end to end."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.core.schema import read_bytes, read_text
from ovseg.data.prepare import files
from ovseg.data.prepare.dataset import prepare_dataset
from ovseg.data.prepare.layouts import LAYOUTS
from ovseg.data.prepare.sources import Reading

HEIGHT = 48
WIDTH = 64  # squares of 64 keep the pixels as they are
COUNT = 12
# x from 10 to 30, y from 8 to 20: 20 x 12 pixels.
RECTANGLE = [10, 8, 30, 8, 30, 20, 10, 20]
RECTANGLE_PIXELS = 240
# Beside it: x from 40 to 45, y from 8 to 18.
SECOND = [40, 8, 45, 8, 45, 18, 40, 18]
SECOND_PIXELS = 50


def draw_image(path: Path) -> Path:
    """Save a picture that looks like no other one."""
    seed = [ord(character) for character in path.as_posix()]
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(cv2.resize(coarse, (WIDTH, HEIGHT))).save(path)
    return path


def draw_mask(path: Path, outline: list[int] = RECTANGLE, value: int = 255) -> Path:
    """Save a mask of a rectangle, or of nothing where there is no outline."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    if outline:
        mask[outline[1] : outline[5], outline[0] : outline[2]] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """Folder of a dataset that a test draws."""
    return tmp_path / "in"


@pytest.fixture
def prepare(root, tmp_path) -> Callable[..., dict]:
    """A function that prepares the drawn dataset, without a change of its pixels."""

    def run(reading: Reading | None = None, source: Path | None = root, **options) -> dict:
        output = tmp_path / "out"
        return prepare_dataset(
            source, output, size=WIDTH, reading=reading, overwrite=True, **options
        )

    return run


@pytest.fixture
def read_written(tmp_path) -> Callable[..., np.ndarray]:
    """A function that reads a picture that was written for an entry of the manifest."""

    def read(item: dict, kind: str = "masks") -> np.ndarray:
        path = tmp_path / "out" / item["split"] / kind / f"{item['stem']}.png"
        return np.array(Image.open(path))

    return read


@pytest.fixture
def count_lesion(read_written) -> Callable[[dict], dict[str, int]]:
    """A function that counts the pixels of each image's lesion."""

    def count(manifest: dict) -> dict[str, int]:
        return {item["stem"]: int((read_written(item) > 0).sum()) for item in manifest["items"]}

    return count


def column(manifest: dict, name: str) -> dict:
    """Stem -> what the manifest's entry has under this name."""
    return {item["stem"]: item[name] for item in manifest["items"]}


def draw_pairs(root: Path, images: str = "images", masks: str = "masks") -> None:
    """Draw a folder of images and one of masks."""
    for number in range(COUNT):
        draw_image(root / images / f"case{number}.jpg")
        draw_mask(root / masks / f"case{number}.png")


# Folders of masks


@pytest.mark.parametrize("masks", ["masks", "annotations", "Labels", "ground_truth"])
def test_folders_of_images_and_masks(root, prepare, count_lesion, capsys, masks):
    draw_pairs(root, "images", masks)
    manifest = prepare()
    assert set(count_lesion(manifest).values()) == {RECTANGLE_PIXELS}
    assert manifest["layout"] == "folders"
    assert manifest["categories"] == ["lesion"]
    assert set(column(manifest, "split").values()) == {"train", "valid", "test"}
    assert "folders layout: 12 images" in capsys.readouterr().out


def test_folders_are_named_by_themselves(root, tmp_path, run_command):
    draw_pairs(root, "pictures of 2024", "drawn by A")
    arguments = ["--images", root / "pictures of 2024", "--masks", root / "drawn by A"]
    output = tmp_path / "out"
    assert run_command("prepare_data", *arguments, "--output", output, "--size", 64) == 0
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["items"][0]["source"] == "pictures of 2024/case0.jpg"


@pytest.mark.parametrize(
    "options", [{}, {"reading": Reading(images=Path("a"))}, {"reading": Reading(masks=Path("a"))}]
)
def test_dataset_that_is_not_named_is_an_error(prepare, options):
    with pytest.raises(InputError, match="--source, or .*--images and --masks"):
        prepare(source=None, **options)


def test_source_and_folders_together_are_an_error(root, prepare):
    draw_pairs(root)
    with pytest.raises(InputError, match="--source, or its two folders"):
        prepare(Reading(images=root / "images", masks=root / "masks"))


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 38), (40, 200)])
def test_mask_of_any_two_values(root, prepare, count_lesion, values):
    draw_pairs(root)
    for path in (root / "masks").iterdir():
        mask = np.array(Image.open(path)) > 0
        Image.fromarray(np.where(mask, values[1], values[0]).astype(np.uint8)).save(path)
    assert set(count_lesion(prepare()).values()) == {RECTANGLE_PIXELS}


def test_jpeg_masks_keep_their_lesion_and_have_no_noise(root, prepare, count_lesion):
    draw_pairs(root)
    for path in sorted((root / "masks").iterdir()):
        mask = np.array(Image.open(path))
        if path.stem == "case0":
            mask[:] = 3
        Image.fromarray(mask).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    counts = count_lesion(prepare())
    assert counts.pop("case0") == 0
    assert all(abs(count - RECTANGLE_PIXELS) <= 10 for count in counts.values())


def test_inverted_masks_are_asked_about(root, prepare, count_lesion, capsys):
    draw_pairs(root)
    for path in (root / "masks").iterdir():
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
    prepare()
    assert "12 of 12 masks are lesion at all four corners" in capsys.readouterr().out
    manifest = prepare(Reading(invert_masks=True))
    assert set(count_lesion(manifest).values()) == {RECTANGLE_PIXELS}
    assert "corners" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "message"), [(0, "None of the 12 images"), (9, "All 12 images .* everywhere")]
)
def test_masks_that_are_all_empty_or_all_full_are_an_error(root, prepare, value, message):
    draw_pairs(root)
    for path in (root / "masks").iterdir():
        Image.fromarray(np.full((HEIGHT, WIDTH), value, np.uint8)).save(path)
    with pytest.raises(InputError, match=message):
        prepare()


@pytest.mark.parametrize(
    "name",
    [
        "{}_mask",
        "{}_Segmentation",
        "{}-gt",
        "mask_{}",
        "{}_mask_1",
        "{}mask",
        "{}_1",
        "{} (1)_label",
    ],
)
def test_names_of_masks_are_found_by_rule(root, prepare, count_lesion, name):
    for number in range(COUNT):
        draw_image(root / "images" / f"case{number}x.png")
        stem = name.format(f"case{number}x")
        if "(1)" in name:
            draw_image(root / "images" / f"case{number}x (1).png")
            (root / "images" / f"case{number}x.png").unlink()
        draw_mask(root / "masks" / f"{stem}.png")
    assert set(count_lesion(prepare()).values()) == {RECTANGLE_PIXELS}


def test_images_may_have_a_word_in_their_names_too(root, prepare, count_lesion):
    for number in range(COUNT):
        draw_image(root / "images" / f"img_{number}.png")
        draw_mask(root / "masks" / f"mask_{number}.png")
    assert set(count_lesion(prepare()).values()) == {RECTANGLE_PIXELS}


def test_several_masks_of_an_image_are_united(root, prepare, count_lesion):
    draw_pairs(root)
    draw_mask(root / "masks" / "case3_mask_1.png", SECOND)
    draw_mask(root / "masks" / "case3_mask_2.png", [12, 8, 22, 8, 22, 20, 12, 20])  # in the first
    counts = count_lesion(prepare())
    assert counts.pop("case3") == RECTANGLE_PIXELS + SECOND_PIXELS
    assert set(counts.values()) == {RECTANGLE_PIXELS}


def test_own_suffix_of_masks(root, prepare, count_lesion):
    for number in range(COUNT):
        draw_image(root / f"case{number}.png")
        draw_mask(root / f"case{number}_drawn by A.png")
        draw_mask(root / f"case{number}_drawn by A_2.png", SECOND)
    with pytest.raises(InputError, match="no layout that is known. Known are: otu2d"):
        prepare()
    manifest = prepare(Reading(mask_suffix="_drawn by A"))
    assert set(count_lesion(manifest).values()) == {RECTANGLE_PIXELS + SECOND_PIXELS}


def test_image_without_mask_is_an_error_unless_said_otherwise(root, prepare, count_lesion):
    draw_pairs(root)
    draw_image(root / "images" / "healthy.png")
    with pytest.raises(InputError, match="1 of 13 images .* have no mask .*: images/healthy.png"):
        prepare()
    assert count_lesion(prepare(unmatched="empty"))["healthy"] == 0
    assert len(prepare(unmatched="skip")["items"]) == COUNT


def test_mask_without_image_is_an_error_that_names_it(root, prepare):
    draw_pairs(root)
    draw_mask(root / "masks" / "more.png")
    with pytest.raises(InputError, match="1 masks .* have no image: masks/more.png"):
        prepare()


def test_mask_of_another_size_is_a_failure(root, prepare):
    draw_pairs(root)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "masks" / "case3.png")
    manifest = prepare()
    assert len(manifest["items"]) == COUNT - 1
    assert "case3.png differ in size (64 x 48 and 9 x 9)" in manifest["failures"][0]


def test_masks_of_ids_keep_their_categories(root, prepare, read_written):
    draw_pairs(root)
    for number in range(COUNT):
        draw_mask(root / "masks" / f"case{number}_mask_2.png", SECOND, value=2)
        draw_mask(root / "masks" / f"case{number}.png", value=1)
    manifest = prepare(Reading(categories=True))
    assert manifest["categories"] == ["category 1", "category 2"]
    ids = read_written(manifest["items"][0], "categories")
    assert np.bincount(ids.ravel())[1:].tolist() == [RECTANGLE_PIXELS, SECOND_PIXELS]
    assert manifest["items"][0]["category"] == 1


def test_busi_classes_are_categories_and_normal_images_are_empty(
    root, prepare, count_lesion, read_written, capsys
):
    for kind in ("benign", "malignant", "normal"):
        for number in range(1, 9):
            draw_image(root / "Dataset_BUSI_with_GT" / kind / f"{kind} ({number}).png")
            outline = [] if kind == "normal" else RECTANGLE
            draw_mask(root / "Dataset_BUSI_with_GT" / kind / f"{kind} ({number})_mask.png", outline)
    draw_mask(root / "Dataset_BUSI_with_GT" / "benign" / "benign (4)_mask_1.png", SECOND)
    manifest = prepare()
    assert "busi layout: 24 images in 3 classes" in capsys.readouterr().out
    assert manifest["categories"] == ["benign", "malignant"]

    counts = count_lesion(manifest)
    assert counts["benign (4)"] == RECTANGLE_PIXELS + SECOND_PIXELS
    assert counts["malignant (4)"] == RECTANGLE_PIXELS
    assert counts["normal (4)"] == 0
    assert column(manifest, "class")["normal (4)"] == "normal"
    assert column(manifest, "category")["normal (4)"] == 0
    assert column(manifest, "category")["malignant (4)"] == 2
    for item in manifest["items"]:
        ids = read_written(item, "categories")
        assert ids.max() == item["category"]
    classes = [(item["split"], item["class"]) for item in manifest["items"]]
    assert all(classes.count(("train", kind)) in (6, 7) for kind in ("benign", "normal"))


def test_tn3k_keeps_its_split_and_its_first_fold(root, prepare, count_lesion):
    for part, count in (("trainval", 10), ("test", 4)):
        for number in range(count):
            draw_image(root / f"{part}-image" / f"{number:04d}.jpg")
            draw_mask(root / f"{part}-mask" / f"{number:04d}.jpg")
    lists = {"train": list(range(8)), "val": ["0008.jpg", "0009.jpg"]}
    (root / "tn3k-trainval-fold0.json").write_text(json.dumps(lists))
    manifest = prepare()
    assert manifest["layout"] == "tn3k"
    assert manifest["split"] == "official"
    splits = list(column(manifest, "split").values())
    assert [splits.count(name) for name in ("train", "valid", "test")] == [8, 2, 4]
    assert column(manifest, "split")["trainval-image_0009"] == "valid"
    assert len(count_lesion(manifest)) == 14


def test_own_split_is_kept(root, prepare, capsys):
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for number in range(count):
            draw_image(root / split / "images" / f"{split}{number}.png")
            draw_mask(root / split / "masks" / f"{split}{number}_mask.png")
            draw_mask(root / split / "masks" / f"{split}{number}_mask_1.png", SECOND)
    manifest = prepare()
    splits = list(column(manifest, "split").values())
    assert [splits.count(name) for name in ("train", "valid", "test")] == [6, 2, 3]
    assert column(manifest, "split")["val1"] == "valid"
    assert "Its own split is kept" in capsys.readouterr().out
    assert prepare(split="groups")["split"] == "groups"


def test_own_split_that_divides_a_group_is_refused(root, prepare):
    for split in ("train", "val", "test"):
        for number in range(3):
            draw_image(root / split / "images" / f"{split}{number}.png")
            draw_mask(root / split / "masks" / f"{split}{number}.png")
    shutil.copy(root / "train/images/train1.png", root / "test/images/test1.png")
    with pytest.raises(InputError, match="two splits: test/test1 and train/train1.*--split groups"):
        prepare()
    assert prepare(allow_leakage=True)["leakage"]


def test_own_split_without_test_images_is_a_question(root, prepare, capsys):
    for split, count in (("train", 16), ("val", 4)):
        for number in range(count):
            draw_image(root / "images" / split / f"{split}{number}.png")
            draw_mask(root / "masks" / split / f"{split}{number}.png")
    manifest = prepare()
    assert manifest["split"] == "groups"
    assert "add --split official" in capsys.readouterr().out
    splits = column(prepare(split="official"), "split")
    assert {splits[f"val{number}"] for number in range(4)} == {"test"}
    assert set(splits.values()) == {"train", "valid", "test"}


def test_two_folders_of_masks_are_a_question(root, prepare):
    draw_pairs(root)
    draw_mask(root / "labels" / "case1.png")
    with pytest.raises(InputError, match="several folders .*: labels, masks. Name the two folders"):
        prepare()


def test_folder_of_no_layout_lists_the_layouts(root, prepare):
    draw_image(root / "a.png")
    with pytest.raises(InputError, match="no layout that is known") as caught:
        prepare()
    assert all(name in str(caught.value) for name in LAYOUTS)


def test_option_without_meaning_for_the_layout_is_an_error(root, prepare):
    draw_pairs(root)
    with pytest.raises(InputError, match="--labels has no meaning for the layout folders"):
        prepare(Reading(labels=("cyst",)))


# Patients


def test_patients_of_a_table_are_never_divided(root, prepare, tmp_path):
    draw_pairs(root)
    shutil.copy(root / "images/case0.jpg", root / "images/case11.jpg")  # alike, of two patients
    table = tmp_path / "patients.csv"
    lines = [f"case{number},p{number // 3}" for number in range(COUNT)]
    lines[4] = "case4.jpg,p1"  # a file's name does as well
    table.write_text("\n".join(["stem,group", *lines]))
    manifest = prepare(groups=str(table))
    groups = column(manifest, "group")
    splits = column(manifest, "split")
    assert groups["case0"] == groups["case2"] == groups["case9"] == groups["case11"]
    assert len(set(groups.values())) == 3
    assert len({(groups[stem], splits[stem]) for stem in groups}) == 3
    assert column(manifest, "patient")["case4"] == "p1"


@pytest.mark.parametrize(
    ("heading", "separator", "row"),
    [
        ("patient,image", ",", "p{patient},case{number}"),
        ("Patient ID;File Name", ";", "p{patient}; case{number}.jpg "),
        ("PatientID\tage\timage_path", "\t", "p{patient}\t44\timages/case{number}.jpg"),
        (
            "\ufefffilename,case,exam",
            ",",
            "C:\\scans\\images\\case{number}.dcm,p{patient},{number}",
        ),
        ("StudyInstanceUID,stem", ",", '"p{patient}","case{number}"'),
    ],
)
def test_usual_tables_of_patients_are_read(
    root, prepare, tmp_path, capsys, heading, separator, row
):
    draw_pairs(root)
    table = tmp_path / "patients.csv"
    lines = [row.format(patient=number // 3, number=number) for number in range(COUNT)]
    table.write_text("\r\n".join([heading, *lines, "", ""]), newline="")
    manifest = prepare(groups=str(table))
    assert column(manifest, "patient") == {f"case{n}": f"p{n // 3}" for n in range(COUNT)}
    of_image, of_patient = {
        "patient,image": ("image", "patient"),
        "Patient ID;File Name": ("File Name", "Patient ID"),
        "PatientID\tage\timage_path": ("image_path", "PatientID"),
        "\ufefffilename,case,exam": ("filename", "case"),
        "StudyInstanceUID,stem": ("stem", "StudyInstanceUID"),
    }[heading]
    printed = capsys.readouterr().out
    assert f"patients.csv: images in {of_image}, patient in {of_patient}.\n" in printed


def test_table_of_unknown_columns_lists_the_known_ones(root, prepare, tmp_path):
    draw_pairs(root)
    table = tmp_path / "patients.csv"
    table.write_text("Bild,Frau\ncase0,p0\n")
    message = (
        r"begins with Bild, Frau, expected .* images \(stem, file,.* patient \(patient, person"
    )
    with pytest.raises(InputError, match=message):
        prepare(groups=str(table))


def test_name_of_several_images_needs_its_folder_in_a_table(root, prepare, tmp_path):
    for number in range(COUNT):
        draw_image(root / "images" / f"p{number // 4}" / f"{number % 4}.png")
        draw_mask(root / "masks" / f"p{number // 4}" / f"{number % 4}.png")
    table = tmp_path / "patients.csv"
    lines = [f"{number % 4}.png,p{number // 4}" for number in range(COUNT)]
    table.write_text("\n".join(["file,patient", *lines]))
    with pytest.raises(InputError, match="12 names that several images have: 0.png, 1.png"):
        prepare(groups=str(table))
    lines = [f"p{number // 4}/{number % 4}.png,p{number // 4}" for number in range(COUNT)]
    table.write_text("\n".join(["file,patient", *lines]))
    assert column(prepare(groups=str(table)), "patient")["images_p2_1"] == "p2"


def test_names_in_a_table_match_in_composed_letters(root, prepare, tmp_path):
    composed = unicodedata.normalize("NFC", "Läsion")
    for number in range(COUNT):
        name = unicodedata.normalize("NFD", f"{composed} {number}.png")
        draw_image(root / "images" / name)
        draw_mask(root / "masks" / name)
    table = tmp_path / "patients.csv"
    lines = [f"{composed} {number},p{number}" for number in range(COUNT)]
    table.write_text("\n".join(["image,patient", *lines]))
    manifest = prepare(groups=str(table))
    assert column(manifest, "patient")[f"{composed} 7"] == "p7"
    assert all(
        (read := item["stem"]) == unicodedata.normalize("NFC", read) for item in manifest["items"]
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", r"miss images \(1: case3\)"),
        ("case3", "1 lines without image or patient: case3"),
    ],
)
def test_table_of_other_images_is_an_error(root, prepare, tmp_path, line, message):
    draw_pairs(root)
    table = tmp_path / "patients.csv"
    lines = [f"case{number},p{number}" for number in range(COUNT) if number != 3]
    table.write_text("\n".join([*lines, line]))
    with pytest.raises(InputError, match=message):
        prepare(groups=str(table))


def test_rows_of_images_that_are_not_here_are_counted(root, prepare, tmp_path, capsys):
    draw_pairs(root)
    table = tmp_path / "patients.csv"
    lines = [f"case{number},p{number % 4}" for number in range(COUNT)]
    table.write_text("\n".join([*lines, "case99,p1"]))
    manifest = prepare(groups=str(table))
    assert column(manifest, "patient")["case3"] == "p3"
    assert "without an image here, not used: 1 (case99)." in capsys.readouterr().out


def test_patients_of_folders_are_never_divided(root, prepare):
    for patient in range(5):
        for number in range(3):
            draw_image(root / "images" / f"p{patient}" / f"{number}.png")
            draw_mask(root / "masks" / f"p{patient}" / f"{number}.png")
    manifest = prepare(groups="folders")
    splits = column(manifest, "split")
    assert len(splits) == 15
    assert splits["images_p0_0"] == splits["images_p0_2"]
    assert len({(item["patient"], item["split"]) for item in manifest["items"]}) == 5
    assert manifest["categories"] == ["lesion"]
    assert "class" not in manifest["items"][0]


def test_folders_of_classes_are_no_patients(root, prepare, capsys):
    for kind in ("benign", "malignant", "normal"):
        for number in range(4):
            draw_image(root / kind / f"{kind} ({number}).png")
            draw_mask(root / kind / f"{kind} ({number})_mask.png")
    with pytest.raises(InputError, match="benign, malignant, normal in .* are classes of images"):
        prepare(groups="folders")
    prepare()
    assert "If each is a patient" not in capsys.readouterr().out


def test_images_in_no_folder_of_a_patient_are_an_error(root, prepare):
    for split in ("train", "val", "test"):
        for number in range(4):
            draw_image(root / split / "images" / f"{split}{number}.png")
            draw_mask(root / split / "masks" / f"{split}{number}.png")
    with pytest.raises(InputError, match="12 of 12 images lie in none: test/images/test0.png"):
        prepare(groups="folders")


def test_folders_that_are_taken_as_patients_are_counted(root, prepare, capsys):
    for number in range(COUNT):
        draw_image(root / "images" / f"p{number // 2}" / f"{number}.png")
        draw_mask(root / "masks" / f"p{number // 2}" / f"{number}.png")
    manifest = prepare(groups="folders")
    assert (
        "6 folders are taken as patients: p0, p1, p2, p3, p4 and 1 more" in capsys.readouterr().out
    )
    assert column(manifest, "patient")["11"] == "p5"


def test_split_that_divides_a_patient_is_refused(root, prepare, tmp_path):
    draw_pairs(root)
    names = ["train"] * 8 + ["valid"] * 2 + ["test"] * 2
    split = {f"case{number}": names[number] for number in range(COUNT)}
    (tmp_path / "split.json").write_text(json.dumps(split))
    table = tmp_path / "patients.csv"
    table.write_text("\n".join(f"case{number},p{number % 11}" for number in range(COUNT)))
    with pytest.raises(InputError, match="two splits: train/case0 and test/case11"):
        prepare(groups=str(table), split_file=tmp_path / "split.json")


# What is left out, changed or turned


def test_files_that_are_not_used_are_counted_by_kind(root, tmp_path, run_command, capsys):
    draw_pairs(root)
    for name in ("notes.txt", "images/scan.dcm", "images/.DS_Store", "masks/Thumbs.db"):
        (root / name).touch()
    draw_image(root / "report" / "figure.png")
    draw_image(root / "images" / "healthy.png")
    arguments = ["--source", root, "--output", tmp_path / "out", "--size", WIDTH]
    assert run_command("prepare_data", *arguments, "--unmatched", "skip") == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "6 files were left out; no mask or annotation: 1 (images/healthy.png); hidden: 2 "
        "(images/.DS_Store, masks/Thumbs.db); no picture: 2 (images/scan.dcm, notes.txt); "
        "not used: 1 (report/figure.png)"
    )


def test_nothing_is_left_out_of_whole_datasets(coco, root, prepare):
    assert prepare()["left_out"] == {}
    shutil.rmtree(root)
    draw_yolo(root)
    (root / "labels" / "classes.txt").write_text("cyst\n")
    assert prepare()["left_out"] == {}


def test_soft_masks_are_divided_at_the_middle_and_counted(root, prepare, count_lesion, capsys):
    draw_pairs(root)
    soft = np.array(Image.open(root / "masks" / "case3.png"))
    soft[8:20, 9] = 100  # 12 pixels beside the lesion, and 12 of its own
    soft[8:20, 10] = 180
    Image.fromarray(soft).save(root / "masks" / "case3.png")
    assert set(count_lesion(prepare()).values()) == {RECTANGLE_PIXELS}
    message = (
        "1 of 12 masks have values between their darkest and their brightest one, in 24 pixels"
    )
    assert f"{message} (0.78%)" in capsys.readouterr().out


def test_soft_lesion_of_a_few_pixels_is_read(root, prepare, count_lesion):
    draw_pairs(root)
    tiny = np.zeros((HEIGHT, WIDTH), np.uint8)
    tiny[20:22, 30:32] = 255
    Image.fromarray(cv2.GaussianBlur(tiny, (0, 0), 1.5)).save(root / "masks" / "case3.png")
    manifest = prepare()
    assert manifest["failures"] == []
    assert 4 <= count_lesion(manifest)["case3"] <= 16


def turn(path: Path, orientation: int) -> None:
    """Store a picture on its side, with the orientation that viewers undo."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)


def test_labels_of_the_picture_as_it_is_stored_name_the_orientation(root, prepare):
    draw_pairs(root)
    turn(root / "images" / "case3.jpg", 6)
    manifest = prepare()
    assert len(manifest["items"]) == COUNT - 1
    assert "differ in size (48 x 64 and 64 x 48)" in manifest["failures"][0]
    assert "its EXIF orientation turns it by 90 degrees" in manifest["failures"][0]


def test_outlines_of_the_picture_as_it_is_stored_name_the_orientation(coco, prepare):
    turn(coco[0].parent.parent / "images" / "case3.png", 8)
    assert "its EXIF orientation turns it by 90 degrees" in prepare()["failures"][0]


def test_pictures_that_are_turned_upside_down_are_counted(root, prepare, capsys):
    draw_pairs(root)
    turn(root / "images" / "case3.jpg", 3)
    prepare()
    assert "1 of 12 images were turned as viewers show them" in capsys.readouterr().out


def test_equal_advice_is_given_once(root, prepare):
    draw_pairs(root)
    for path in (root / "masks").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="None of the 12 pairs") as caught:
        prepare()
    message = str(caught.value)
    assert message.count("cannot be read") == 5
    assert message.count("Replace or remove the file.") == 1
    assert "and 7 more. Replace" in message


# Outlines


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def coco_records(names: list[str], folder: str = "") -> dict:
    """A COCO file in which each image has a cyst, and the first one a solid part too."""
    images = []
    annotations = []
    for number, name in enumerate(names, 1):
        record = {"id": number, "file_name": folder + name, "height": HEIGHT, "width": WIDTH}
        images.append(record)
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "segmentation": [RECTANGLE]}
        )
    annotations.append({"id": 99, "image_id": 1, "category_id": 7, "segmentation": [SECOND]})
    categories = [{"id": 1, "name": "cyst"}, {"id": 7, "name": "solid part"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def coco(root) -> tuple[Path, dict]:
    """A dataset in COCO's layout: its file, and what the file holds."""
    names = [f"case{number}.png" for number in range(COUNT)]
    for name in names:
        draw_image(root / "images" / name)
    content = coco_records(names)
    return write_json(root / "annotations" / "instances_default.json", content), content


def test_coco_outlines_become_masks(coco, prepare, count_lesion, capsys):
    manifest = prepare()
    assert manifest["layout"] == "coco"
    assert manifest["categories"] == ["lesion"]
    counts = count_lesion(manifest)
    assert counts.pop("case0") == RECTANGLE_PIXELS + SECOND_PIXELS
    assert set(counts.values()) == {RECTANGLE_PIXELS}
    assert "coco layout: 12 images" in capsys.readouterr().out


def test_labels_of_outlines_can_be_categories(coco, prepare, read_written):
    manifest = prepare(Reading(categories=True))
    assert manifest["categories"] == ["cyst", "solid part"]
    item = next(item for item in manifest["items"] if item["stem"] == "case0")
    ids = read_written(item, "categories")
    assert np.bincount(ids.ravel())[1:].tolist() == [RECTANGLE_PIXELS, SECOND_PIXELS]


def test_labels_can_be_chosen(coco, tmp_path, run_command, capsys):
    root = coco[0].parent.parent
    arguments = ["--source", root, "--output", tmp_path / "out", "--size", WIDTH]
    assert run_command("prepare_data", *arguments, "--labels", "solid part") == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert sorted(column(manifest, "category").values()) == [0] * 11 + [1]
    assert "Labels that are no lesion: cyst." in capsys.readouterr().out


def test_unknown_label_lists_those_there_are(coco, prepare):
    with pytest.raises(InputError, match="names ovary, but the labels .* are: cyst, solid part"):
        prepare(Reading(labels=("ovary",)))


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [4, 3], "counts": [1, 2, 3, 1, 5]},
        {"size": [4, 3], "counts": "123O2"},
    ],
)
def test_coco_run_lengths_go_down_the_columns(coco, prepare, read_written, segmentation):
    path, content = coco
    for image in content["images"]:
        draw_image_of(path.parent.parent / "images" / image["file_name"], 4, 3)
        image.update(height=4, width=3)
    for annotation in content["annotations"]:
        annotation["segmentation"] = segmentation
    write_json(path, content)
    manifest = prepare(fit="letterbox")
    item = manifest["items"][0]
    mask = read_written(item)
    expected = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]])
    small = cv2.resize(mask[:, 8:56], (3, 4), interpolation=cv2.INTER_NEAREST)
    assert ((small > 0) == expected).all()


def draw_image_of(path: Path, height: int, width: int) -> None:
    seed = [ord(character) for character in path.as_posix()]
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)


def test_coco_of_each_split_keeps_the_split(root, prepare):
    for split, count in (("train", 6), ("valid", 2), ("test", 2)):
        names = [f"{number}.png" for number in range(count)]
        for name in names:
            draw_image(root / split / name)
        write_json(root / split / "_annotations.coco.json", coco_records(names))
    manifest = prepare()
    splits = list(column(manifest, "split").values())
    assert [splits.count(name) for name in ("train", "valid", "test")] == [6, 2, 2]
    assert "train_3" in column(manifest, "split")


def without_key(record: dict, key: str) -> dict:
    return {name: value for name, value in record.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 77}, "annotations of 1 images that it does not list: 77"),
        ({"category_id": 3}, "annotation 2 has the category_id 3, .* categories: 1, 7"),
        ({"category_id": None}, "annotation 2 has nothing as category_id"),
        ({"segmentation": [[1, 2, 3]]}, "annotation 2 has points that are no pairs"),
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation 2 has 2 points, expected 3 or more"),
        ({"segmentation": [[1, 2, "a", 4, 5, 6]]}, "annotation 2 has points that are no pairs"),
        ({"segmentation": {"size": [4], "counts": []}}, "annotation 2 has run lengths of the size"),
        ({"segmentation": {"size": [4, 3], "counts": [-1]}}, "annotation 2 has the run lengths -1"),
        ({"segmentation": {"size": [4, 3], "counts": "\x7f"}}, "annotation 2 has run lengths with"),
    ],
)
def test_malformed_coco_is_one_sentence(coco, prepare, change, message):
    path, content = coco
    content["annotations"][2].update(change)
    write_json(path, content)
    with pytest.raises(InputError, match=message):
        prepare()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"images": 3}'])
def test_file_that_is_no_coco_is_one_sentence(coco, prepare, text):
    coco[0].write_text(text)
    with pytest.raises(InputError, match="no layout that is known"):
        prepare()


def test_annotation_of_another_size_is_a_failure(coco, prepare):
    path, content = coco
    content["images"][4]["width"] = 2 * WIDTH
    write_json(path, content)
    manifest = prepare()
    assert len(manifest["items"]) == COUNT - 1
    assert "is 64 x 48 pixels, but its annotation was made for 128 x 48" in manifest["failures"][0]


def test_points_outside_of_the_image_are_cut_off_and_counted(coco, prepare, count_lesion, capsys):
    path, content = coco
    content["annotations"][2]["segmentation"] = [[-10, 8, 30, 8, 30, 1000, -10, 1000]]
    write_json(path, content)
    assert count_lesion(prepare())["case2"] == 30 * (HEIGHT - 8)
    assert "3 points of outlines in 1 images lie outside" in capsys.readouterr().out


def test_coordinate_that_cannot_be_drawn_is_a_failure(coco, prepare):
    path, content = coco
    content["annotations"][2]["segmentation"] = [[1e9, 8, 30, 8, 30, 20]]
    write_json(path, content)
    assert "cyst of" in prepare()["failures"][0]


def test_image_with_boxes_only_is_a_failure(coco, prepare):
    path, content = coco
    content["annotations"][2]["segmentation"] = []
    write_json(path, content)
    assert "has no outline of case2.png, only 1 x box" in prepare()["failures"][0]


def test_image_that_coco_does_not_annotate_is_an_error(coco, prepare, count_lesion):
    draw_image(coco[0].parent.parent / "images" / "more.png")
    with pytest.raises(InputError, match="1 of 13 images .* annotation: images/more.png"):
        prepare()
    assert count_lesion(prepare(unmatched="empty"))["more"] == 0


def draw_labelme(root: Path) -> None:
    for number in range(COUNT):
        draw_image(root / f"case{number}.jpg")
        points = np.reshape(RECTANGLE, (-1, 2)).tolist()
        shapes = [{"label": "cyst", "points": points, "shape_type": "polygon"}]
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imageData": None}
        content |= {"imagePath": f"case{number}.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        write_json(root / f"case{number}.json", content)


def test_labelme_shapes_become_masks(root, prepare, count_lesion):
    draw_labelme(root)
    content = json.loads((root / "case1.json").read_text())
    content["shapes"][0] |= {"shape_type": "rectangle", "points": [[30, 20], [10, 8]]}
    content["shapes"].append({"label": "caliper", "points": [[1, 1], [9, 9]], "shape_type": "line"})
    write_json(root / "case1.json", content)
    content["shapes"][0] |= {"shape_type": "circle", "points": [[30, 20], [30, 10]]}
    content["imagePath"] = "..\\elsewhere\\case2.jpg"
    write_json(root / "case2.json", content)
    content["shapes"] = []
    write_json(root / "case3.json", content | {"imagePath": "case3.jpg"})

    manifest = prepare()
    assert manifest["layout"] == "labelme"
    counts = count_lesion(manifest)
    assert abs(counts.pop("case2") - np.pi * 100) < 6
    assert counts.pop("case3") == 0
    assert set(counts.values()) == {RECTANGLE_PIXELS}


def test_malformed_labelme_is_a_failure_and_the_others_are_written(root, prepare):
    draw_labelme(root)
    (root / "case1.json").write_text('{"shapes": [')
    write_json(root / "case2.json", {"shapes": [{"label": "cyst", "points": [[1, 2]]}]})
    write_json(
        root / "case3.json", {"shapes": [{"label": "a", "points": [], "shape_type": "mask"}]}
    )
    manifest = prepare()
    assert len(manifest["items"]) == COUNT - 3
    first, second, third = manifest["failures"]
    assert "case1.json is no JSON" in first
    assert "case2.json: shape 0 has 1 points, expected 3 or more" in second
    assert "case3.json: shape 0 is of type 'mask'. Draw it as a polygon" in third


def draw_yolo(root: Path, split: str = "", count: int = COUNT) -> None:
    values = np.reshape(RECTANGLE, (-1, 2)) / (WIDTH, HEIGHT)
    line = "0 " + " ".join(f"{value:.6f}" for value in values.ravel())
    for number in range(count):
        draw_image(root / "images" / split / f"case{number}.jpg")
        labels = root / "labels" / split / f"case{number}.txt"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text(line + "\n")


def test_yolo_outlines_become_masks(root, prepare, count_lesion):
    for split, count in (("train", 7), ("val", 2), ("test", 2)):
        draw_yolo(root, split, count)
    (root / "labels" / "train" / "case3.txt").write_text("")
    (root / "data.yaml").write_text("train: images/train\nnames:\n  0: cyst\n")
    manifest = prepare(Reading(categories=True))
    assert manifest["layout"] == "yolo"
    assert manifest["categories"] == ["cyst"]
    counts = count_lesion(manifest)
    assert counts.pop("images_train_case3") == 0
    assert set(counts.values()) == {RECTANGLE_PIXELS}
    splits = list(column(manifest, "split").values())
    assert [splits.count(name) for name in ("train", "valid", "test")] == [7, 2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.1 0.2 0.3 0.4 0.5", "case3.txt, line 1 has 5 coordinates|no outline of case3"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "case3.txt, line 1 has 7 coordinates"),
        ("5 0.1 0.2 0.3 0.4 0.5 0.6", "line 1 has the class 5, which has no name"),
        ("x 0.1 0.2 0.3 0.4 0.5 0.6", "line 1 begins with 'x'"),
        ("0 0.5 0.5 0.2 0.2", "has no outline of case3.jpg, only 1 x box"),
        ("0 0.1 0.2 nan 0.4 0.5 0.6", "line 1 has a point that is not finite"),
    ],
)
def test_malformed_yolo_is_a_failure_and_the_others_are_written(root, prepare, text, message):
    draw_yolo(root)
    (root / "labels" / "classes.txt").write_text("cyst\n")
    (root / "labels" / "case3.txt").write_text(text)
    manifest = prepare()
    assert len(manifest["items"]) == COUNT - 1
    assert len(manifest["failures"]) == 1
    with pytest.raises(InputError, match=message):
        raise InputError(manifest["failures"][0])


def draw_cvat(root: Path, shapes: str, count: int = COUNT) -> Path:
    images = ""
    for number in range(count):
        draw_image(root / "images" / f"case{number}.png")
        images += f'<image id="{number}" name="case{number}.png" width="{WIDTH}" '
        images += f'height="{HEIGHT}">{shapes}</image>'
    path = root / "annotations.xml"
    path.write_text(f"<annotations><version>1.1</version>{images}</annotations>")
    return path


@pytest.mark.parametrize(
    ("shape", "pixels"),
    [
        ('<polygon label="cyst" points="10,8;30,8;30,20;10,20" z_order="0"/>', RECTANGLE_PIXELS),
        # 4 x 3 at row 5 and column 6, along the rows: 1 background, 2 lesion, 7, 2.
        ('<mask label="cyst" rle="1, 2, 7, 2" left="6" top="5" width="4" height="3"/>', 4),
        ('<tag label="seen"/><polygon label="cyst" points="0,0;8,0;8,8"/>', 36),
    ],
)
def test_cvat_shapes_become_masks(root, prepare, count_lesion, shape, pixels):
    draw_cvat(root, shape)
    manifest = prepare()
    assert manifest["layout"] == "cvat"
    assert set(count_lesion(manifest).values()) == {pixels}


def test_cvat_run_lengths_go_along_the_rows(root, prepare, read_written):
    draw_cvat(root, '<mask label="a" rle="1, 2, 7, 2" left="6" top="5" width="4" height="3"/>')
    mask = read_written(prepare()["items"][0])
    top = (WIDTH - HEIGHT) // 2  # of the letterbox
    rows, columns = np.nonzero(mask)
    assert (rows - top).tolist() == [5, 5, 7, 7]
    assert columns.tolist() == [7, 8, 8, 9]


def test_later_cvat_layer_is_on_top(root, prepare, read_written):
    shapes = '<polygon label="top" points="10,8;30,8;30,20;10,20" z_order="2"/>'
    shapes += '<polygon label="below" points="0,0;60,0;60,48;0,48" z_order="1"/>'
    draw_cvat(root, shapes)
    manifest = prepare(Reading(categories=True))
    assert manifest["categories"] == ["below", "top"]
    ids = read_written(manifest["items"][0], "categories")
    assert (ids == 2).sum() == RECTANGLE_PIXELS
    assert (ids == 1).sum() == HEIGHT * 60 - RECTANGLE_PIXELS


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<polygon label="a" points="1,2;3,x;5,6"/>', "points that are no pairs of numbers"),
        ('<mask label="a" rle="x" left="1" top="1" width="1" height="1"/>', "run length 'x'"),
        ('<mask label="a" rle="1" left="" top="1" width="1" height="1"/>', "has '' as left"),
    ],
)
def test_malformed_cvat_is_one_sentence(root, prepare, shape, message):
    draw_cvat(root, shape)
    with pytest.raises(InputError, match=message):
        prepare()


def test_run_lengths_that_do_not_fill_their_box_are_failures(root, prepare):
    path = draw_cvat(root, '<polygon label="a" points="1,2;30,2;5,16"/>')
    wrong = '<mask label="a" rle="900000000000" left="1" top="1" width="1" height="1"/>'
    polygon = '<polygon label="a" points="1,2;30,2;5,16"/>'
    path.write_text(path.read_text().replace(polygon, wrong, 1))
    assert "has run lengths of 900000000000 pixels for 1 x 1" in prepare()["failures"][0]


def test_xml_with_entities_is_not_read(root, prepare):
    path = draw_cvat(root, "")
    bomb = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
    path.write_text(bomb + path.read_text().replace("1.1", "&b;"))
    with pytest.raises(InputError, match="annotations.xml is no XML that is read .has a DOCTYPE"):
        prepare()
    with pytest.raises(InputError, match="has a DOCTYPE"):
        prepare(layout="cvat")


def test_ddti_cases_are_patients(root, prepare, count_lesion):
    points = [{"x": x, "y": y} for x, y in np.reshape(RECTANGLE, (-1, 2)).tolist()]
    svg = json.dumps([{"points": points, "annotation": {}, "regionType": "freehand"}])
    for case in range(6):
        marks = ""
        for number in (1, 2):
            draw_image(root / f"{case}_{number}.jpg")
            marks += f"<mark><image>{number}</image><svg>{svg}</svg></mark>"
        (root / f"{case}.xml").write_text(f"<case><number>{case}</number>{marks}</case>")
    (root / "5.xml").write_text("<case><mark><image>1</image><svg>[{</svg></mark></case>")
    manifest = prepare()
    assert manifest["layout"] == "ddti"
    assert set(count_lesion(manifest).values()) == {RECTANGLE_PIXELS}
    assert len(manifest["items"]) == 10
    assert "5.xml: image 1 has an outline that is no JSON" in manifest["failures"][0]
    splits = column(manifest, "split")
    assert all(splits[f"{case}_1"] == splits[f"{case}_2"] for case in range(5))
    assert column(manifest, "patient")["3_2"] == "3"


def test_name_of_several_pictures_is_an_error(coco, prepare):
    path, content = coco
    draw_image(path.parent.parent / "a" / "case3.png")
    draw_image(path.parent.parent / "b" / "case3.png")
    (path.parent.parent / "images" / "case3.png").unlink()
    with pytest.raises(InputError, match="names case3.png, which could be"):
        prepare()
    content["images"][3]["file_name"] = "b/case3.png"
    write_json(path, content)
    assert "b_case3" in column(prepare(unmatched="skip"), "stem")


# Which annotations


def test_several_marks_of_a_ddti_image_are_united(root, prepare, count_lesion):
    records = []
    for outline in (RECTANGLE, SECOND):
        points = [{"x": x, "y": y} for x, y in np.reshape(outline, (-1, 2)).tolist()]
        records.append(json.dumps([{"points": points}]))
    for case in range(10):
        draw_image(root / f"{case}_1.jpg")
        marks = "".join(f"<mark><image>1</image><svg>{text}</svg></mark>" for text in records)
        (root / f"{case}.xml").write_text(f"<case>{marks}</case>")
    assert set(count_lesion(prepare()).values()) == {RECTANGLE_PIXELS + SECOND_PIXELS}


def test_annotations_of_other_pictures_with_the_same_names_are_refused(root, prepare):
    names = [f"case{number}.png" for number in range(COUNT)]
    for name in names:
        draw_image(root / "a" / name)
        draw_image(root / "b" / name)
    content = coco_records(["a/case1.png", "b/case1.png", "a/case2.png"])
    # An image that is listed without an annotation is looked at too.
    content["images"].append({"id": 9, "file_name": "b/case2.png"})
    path = write_json(root.parent / "coco" / "predictions.coco.json", content)
    message = (
        r"2 pictures in .*/in/a have several annotations each: case1.png "
        r"\(predictions.coco.json: a/case1.png, predictions.coco.json: b/case1.png\), case2.png"
    )
    with pytest.raises(InputError, match=message):
        prepare(Reading(images=root / "a"), path.parent, unmatched="empty")
    manifest = prepare(Reading(images=root), path.parent, unmatched="skip")
    sources = sorted(item["source"] for item in manifest["items"])
    assert sources == ["a/case1.png", "a/case2.png", "b/case1.png"]


@pytest.mark.parametrize("kind", ["labelme", "yolo"])
def test_second_file_of_a_picture_is_refused(root, prepare, kind):
    if kind == "labelme":
        draw_labelme(root)
        file = root / "case3.json"
    else:
        draw_yolo(root)
        file = root / "labels" / "case3.txt"
    (root / "older").mkdir()
    shutil.copy(file, root / "older")
    message = rf"1 pictures .* \({file.relative_to(root)}: .*case3.*, older/{file.name}: .*case3"
    with pytest.raises(InputError, match=message):
        prepare()


def test_annotations_of_several_layouts_are_a_question(root, prepare, count_lesion):
    draw_labelme(root / "images")
    (root / "labelme").mkdir()
    for path in (root / "images").glob("*.json"):
        path.rename(root / "labelme" / path.name)
    write_json(root / "old.json", coco_records([f"case{number}.jpg" for number in range(COUNT)]))
    # Larger files of another folder do not hide those of LabelMe.
    for number in range(30):
        write_json(root / "contours" / f"{number}.json", {"contours": [0] * 1000})

    message = (
        r"in holds annotations of 2 layouts: coco \(such as old.json\), labelme \(such as "
        r"labelme/case\d+.json\). .*--source of prepare_data, or add --layout coco or labelme"
    )
    with pytest.raises(InputError, match=message):
        prepare()
    assert prepare(layout="labelme")["layout"] == "labelme"
    by_folder = prepare(Reading(images=root / "images"), root / "labelme")
    assert by_folder["layout"] == "labelme"
    assert set(count_lesion(by_folder).values()) == {RECTANGLE_PIXELS}


def test_one_annotation_file_is_a_source(coco, root, tmp_path, run_command, capsys):
    path, content = coco
    corrected = json.loads(json.dumps(content))
    for annotation in corrected["annotations"]:
        annotation["segmentation"] = [SECOND]
    exported = write_json(path.parent / "corrected.json", corrected)
    arguments = ["--output", tmp_path / "out", "--size", WIDTH, "--images", root / "images"]
    assert run_command("prepare_data", "--source", path.parent, *arguments) == 2
    assert "12 pictures in" in capsys.readouterr().err  # have annotations in both files
    assert run_command("prepare_data", "--source", exported, *arguments) == 0
    printed = capsys.readouterr().out
    assert "coco layout: 12 images" in printed
    for mask in (tmp_path / "out").glob("*/masks/*.png"):
        assert (np.array(Image.open(mask)) > 0).sum() == SECOND_PIXELS


def test_annotation_file_may_lie_beside_its_pictures(root, prepare):
    draw_labelme(root)
    shapes = draw_cvat(root, '<polygon label="cyst" points="10,8;30,8;30,20;10,20"/>')
    manifest = prepare(source=shapes, unmatched="skip")
    assert manifest["layout"] == "cvat"
    assert len(manifest["items"]) == COUNT
    with pytest.raises(InputError, match="which is read"):
        prepare_dataset(shapes, root / "out")


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("case3.png", "auto", r"case3.png is a file, .* is read \(cvat, ddti, coco, labelme\)"),
        ("list.json", "auto", "list.json is a file, .* Name such a file or the folder"),
        ("broken.json", "auto", r"broken.json is no JSON"),
        ("list.json", "folders", "list.json is a file"),
        ("absent.json", "auto", "There is no folder or file .*absent.json"),
    ],
)
def test_file_that_is_no_annotation_file_is_one_sentence(
    coco, root, prepare, name, layout, message
):
    write_json(root / "images" / "list.json", [1, 2])
    (root / "images" / "broken.json").write_text("{")
    with pytest.raises(InputError, match=message):
        prepare(source=root / "images" / name, layout=layout)


# Boxes


@pytest.mark.parametrize("layout", ["auto", "yolo"])
def test_yolo_boxes_alone_are_an_error_that_says_what_to_export(root, prepare, layout):
    draw_yolo(root)
    for path in (root / "labels").iterdir():
        path.write_text("0 0.5 0.5 0.2 0.25\n1 0.25 0.5 0.1 0.1\n")
    message = r"no outlines, only 24 x box in 12 files \(labels/case0.txt, .*segmentation format"
    with pytest.raises(InputError, match=message):
        prepare(layout=layout)


def test_coco_boxes_alone_are_an_error_that_says_what_to_export(coco, prepare):
    path, content = coco
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
        annotation["bbox"] = [10, 8, 20, 12]
    write_json(path, content)
    message = r"no outlines, only 13 x box in 1 files \(annotations/instances_.*a `segmentation`"
    with pytest.raises(InputError, match=message):
        prepare()


def test_boxes_among_outlines_are_counted(root, prepare, count_lesion, capsys):
    draw_yolo(root)
    labels = root / "labels" / "case3.txt"
    labels.write_text(labels.read_text() + "0 0.5 0.5 0.2 0.25\n")
    (root / "labels" / "case4.txt").write_text("0 0.5 0.5 0.2 0.25\n")
    manifest = prepare()
    assert count_lesion(manifest)["case3"] == RECTANGLE_PIXELS
    assert "case4.jpg, only 1 x box" in manifest["failures"][0]
    printed = capsys.readouterr().out
    message = (
        "What is no outline was left out: 2 x box in 2 files (labels/case3.txt, labels/case4.txt)"
    )
    assert message in printed


def test_numbers_beside_masks_are_no_boxes(root, prepare):
    draw_pairs(root)
    (root / "images" / "case3.txt").write_text("1 0.5 0.5 0.2 0.25\n")
    assert prepare()["layout"] == "folders"


@pytest.mark.parametrize("layout", ["coco", "cvat"])
def test_large_annotation_file_is_parsed_once(coco, root, prepare, monkeypatch, layout):
    if layout == "cvat":
        coco[0].unlink()
        draw_cvat(root, '<polygon label="cyst" points="10,8;30,8;30,20;10,20"/>')
    parsed = []
    monkeypatch.setattr(
        files, "read_bytes", lambda *given: parsed.append(given) or read_bytes(*given)
    )
    monkeypatch.setattr(
        files, "read_text", lambda *given: parsed.append(given) or read_text(*given)
    )
    assert prepare()["layout"] == layout
    assert len(parsed) == 1
