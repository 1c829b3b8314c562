import json
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ovseg.audit.findings import audit_tree
from ovseg.core.errors import InputError
from ovseg.core.files import content_digest
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.prepare.dataset import prepare_dataset
from ovseg.data.prepare.duplicates import find_tree_leakage
from ovseg.data.prepare.otu2d import CATEGORIES, read_categories
from ovseg.data.prepare.sources import Reading
from ovseg.data.tree import SPLITS

TERATOMA = (0, 0, 64)


def draw_annotation(height: int, width: int, color: tuple[int, int, int] = TERATOMA) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[height // 4 : height // 2, width // 4 : width // 2] = color
    return picture


@pytest.fixture
def source(tmp_path, save_png):
    """30 pairs of noise of varied size, without lists and binary masks."""
    folder = tmp_path / "OTU_2d"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(1, 31):
        height = 40 + number
        width = 90 - number
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))
        image.save(folder / "images" / f"{number}.JPG")
        save_png(folder / "annotations" / f"{number}.PNG", draw_annotation(height, width))
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def prepare(download, output):
    """A function that prepares the download of near-duplicates."""

    def run(**options):
        return prepare_dataset(download, output, **{"size": 32, "overwrite": True, **options})

    return run


def read_kinds(root: Path, item: dict) -> list[np.ndarray]:
    """Image, mask and category map of an entry of the manifest."""
    pictures = []
    for kind in ("images", "masks", "categories"):
        path = root / item["split"] / kind / f"{item['stem']}.png"
        pictures.append(np.array(Image.open(path)))
    return pictures


def column(manifest: dict, name: str) -> dict:
    """Stem -> what the manifest's entry has under this name."""
    return {item["stem"]: item[name] for item in manifest["items"]}


def test_tree_holds_squares_masks_and_categories(source, output):
    manifest = prepare_dataset(source, output, size=32)
    for item in manifest["items"]:
        image, mask, ids = read_kinds(output, item)
        assert image.shape == (32, 32, 3)
        assert set(np.unique(mask)) == {0, 255}
        assert set(np.unique(ids)) == {0, 3}
        assert np.array_equal(mask > 0, ids > 0)

        box = item["box"]
        outside = np.ones((32, 32), bool)
        outside[
            box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]
        ] = False
        assert not image[outside].any()
        assert not mask[outside].any()
    assert json.loads((output / "manifest.json").read_text()) == manifest
    OvarianTumorDataModule(str(output), image_size=32).prepare_data()


def test_split_follows_the_seed(source, output):
    first = prepare_dataset(source, output, size=32)
    other = prepare_dataset(source, output, size=32, seed=1, overwrite=True)
    assert column(first, "split") != column(other, "split")


def test_second_call_changes_nothing(source, output):
    first = prepare_dataset(source, output, size=32)
    stamp = (output / "manifest.json").stat().st_mtime_ns
    assert prepare_dataset(source, output, size=32) == first
    assert (output / "manifest.json").stat().st_mtime_ns == stamp


def test_second_call_replaces_no_damaged_dataset_without_overwrite(source, output):
    item = prepare_dataset(source, output, size=32)["items"][0]
    mask = output / item["split"] / "masks" / f"{item['stem']}.png"
    mask.unlink()
    with pytest.raises(InputError, match="add --overwrite"):
        prepare_dataset(source, output, size=32)
    prepare_dataset(source, output, size=32, overwrite=True)
    assert mask.is_file()


def test_other_settings_need_overwrite(source, output):
    prepare_dataset(source, output, size=32)
    with pytest.raises(InputError, match="Add --overwrite"):
        prepare_dataset(source, output, size=64)
    assert prepare_dataset(source, output, size=64, overwrite=True)["size"] == 64


def test_stretch_fills_the_square(source, output):
    manifest = prepare_dataset(source, output, size=32, fit="stretch")
    assert manifest["items"][0]["box"] == {"top": 0, "left": 0, "height": 32, "width": 32}


def test_binary_annotation_is_used_where_present(source, output, save_png):
    binary = np.zeros((41, 89), np.uint8)
    binary[:20] = 1
    save_png(source / "annotations" / "1_binary.PNG", binary)
    item = prepare_dataset(source, output, size=32, fit="stretch")["items"][0]
    _, mask, _ = read_kinds(output, item)
    assert mask[:14].all()
    assert not mask[18:].any()


def test_unusable_files_are_named_and_the_others_written(source, output, save_png):
    (source / "images" / "3.JPG").write_bytes(b"")
    save_png(source / "annotations" / "4.PNG", draw_annotation(10, 10))
    save_png(source / "annotations" / "5.PNG", draw_annotation(45, 85, (1, 2, 3)))
    manifest = prepare_dataset(source, output, size=32)
    assert len(manifest["items"]) == 27
    for failure, name in zip(manifest["failures"], ("3.JPG", "4.JPG", "5.PNG"), strict=True):
        path = failure.split(" ")[0].rstrip(",")
        assert Path(path).name == name


def test_nothing_usable_leaves_nothing(source, output):
    for path in (source / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="None of the 30 pairs"):
        prepare_dataset(source, output, size=32)
    assert not output.exists()


def test_files_without_partner_are_an_error_that_names_them(source, output):
    (source / "annotations" / "7.PNG").unlink()
    (source / "images" / "9.JPG").unlink()
    message = "1 of 29 images .* have no mask or annotation: images/7.JPG; 1 masks .*/9.PNG"
    with pytest.raises(InputError, match=message):
        prepare_dataset(source, output, size=32)
    assert not output.exists()


def test_files_without_partner_are_left_out_if_asked(source, output):
    (source / "annotations" / "7.PNG").unlink()
    (source / "images" / "9.JPG").unlink()
    manifest = prepare_dataset(source, output, size=32, unmatched="skip")
    assert len(manifest["items"]) == 28
    assert manifest["left_out"] == {
        "no mask or annotation": ["images/7.JPG"],
        "no image": ["annotations/9.PNG"],
    }
    assert manifest["failures"] == []


def test_images_without_annotation_show_no_lesion_if_asked(source, output):
    (source / "annotations" / "7.PNG").unlink()
    manifest = prepare_dataset(source, output, size=32, unmatched="empty")
    assert len(manifest["items"]) == 30
    assert column(manifest, "category")["7"] == 0


def test_nothing_that_matches_is_an_error(source, output):
    for path in (source / "images").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(InputError, match="No image in .* has an annotation of its stem"):
        prepare_dataset(source, output)


def test_missing_source_is_an_error(tmp_path, output):
    with pytest.raises(InputError, match="There is no folder"):
        prepare_dataset(tmp_path / "gone", output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 4}, "--size is 4"),
        ({"seed": -1}, "--seed is -1"),
        ({"folds": 1}, "--folds is 1, expected 2..20"),
        ({"fractions": "8,1,1"}, "--fractions is 8,1,1, expected the shares"),
        ({"split": "official", "fractions": "0.6,0.2,0.2"}, "--fractions is for a split by groups"),
        ({"split": "random"}, "Unknown split 'random'. Choose one of: auto, groups, official"),
        ({"layout": "nothing"}, "Unknown layout 'nothing'. Choose one of: auto, busi, coco"),
        ({"unmatched": "x"}, "Unknown unmatched 'x'. Choose one of: empty, error, skip"),
        ({"fit": "crop"}, "Unknown fit 'crop'. Choose one of: letterbox, stretch"),
        ({"split": "official", "split_file": Path("a.csv")}, "--split_file a.csv are two splits"),
    ],
)
def test_bad_settings_are_errors(download, output, options, message):
    with pytest.raises(InputError, match=message):
        prepare_dataset(download, output, **options)


@pytest.mark.parametrize(("number", "color"), list(enumerate(CATEGORIES, 1)))
def test_every_category_color_has_its_id(tmp_path, save_png, number, color):
    ids, category = read_categories(save_png(tmp_path / "a.png", draw_annotation(8, 8, color)))
    assert category == number
    assert set(np.unique(ids)) == {0, number}


def test_empty_annotation_has_no_category(tmp_path, save_png):
    ids, category = read_categories(save_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8)))
    assert category == 0
    assert not ids.any()


def test_two_categories_are_an_error(tmp_path, save_png):
    picture = draw_annotation(8, 8)
    picture[0, 0] = (64, 0, 0)
    with pytest.raises(InputError, match="2 categories, expected one: teratoma, chocolate cyst"):
        read_categories(save_png(tmp_path / "a.png", picture))


def test_copies_of_a_phantom_are_one_group_in_one_split(prepare, stems):
    manifest = prepare()
    groups = column(manifest, "group")
    splits = column(manifest, "split")
    assert len(set(groups.values())) == 14
    assert set(splits.values()) == set(SPLITS)
    for first in range(0, 39, 3):
        copies = stems[first : first + 3]
        assert len({groups[stem] for stem in copies}) == 1
        assert len({splits[stem] for stem in copies}) == 1
    assert manifest["split"] == "groups"
    assert manifest["leakage"] is False
    assert manifest["leaking_pairs"] == []


def test_no_near_duplicates_cross_the_prepared_splits(prepare, output):
    prepare(size=96)
    assert find_tree_leakage(output) == []


def test_split_and_folds_are_the_same_every_time(prepare):
    first = prepare(folds=3)
    assert prepare(folds=3)["items"] == first["items"]
    assert column(prepare(folds=3, seed=1), "split") != column(first, "split")


def test_folds_partition_train_and_valid_by_groups(prepare, stems):
    manifest = prepare(folds=3)
    folds = column(manifest, "fold")
    splits = column(manifest, "split")
    groups = column(manifest, "group")
    assert {folds[stem] for stem in stems if splits[stem] == "test"} == {None}
    assert {folds[stem] for stem in stems if splits[stem] != "test"} == {0, 1, 2}
    assert len({(groups[stem], folds[stem]) for stem in stems}) == 14


def test_without_test_images_the_folds_hold_every_image(prepare, output):
    manifest = prepare(folds=3, fractions="0.8,0.2,0")
    assert set(column(manifest, "split").values()) == {"train", "valid"}
    assert set(column(manifest, "fold").values()) == {0, 1, 2}
    assert not (output / "test").exists()


def test_dataset_without_folds_has_null_folds(prepare):
    assert set(column(prepare(), "fold").values()) == {None}


def test_folds_that_cannot_be_filled_are_an_error(prepare):
    message = "in 1. groups of near-duplicates leave split or fold .* empty"
    with pytest.raises(InputError, match=message):
        prepare(folds=20)


def test_split_file_is_followed(prepare, make_split, tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(make_split()))
    manifest = prepare(split_file=path)
    assert manifest["split"] == "file"
    assert column(manifest, "split") == make_split()
    assert not manifest["leakage"]


def test_edited_split_file_makes_another_dataset(prepare, make_split, stems, tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(make_split()))
    first = prepare(split_file=path)
    assert prepare(split_file=path, overwrite=False) == first

    path.write_text(json.dumps(make_split(**dict.fromkeys(stems[:3], "test"))))
    with pytest.raises(InputError, match="Add --overwrite"):
        prepare(split_file=path, overwrite=False)


def test_split_file_that_divides_a_group_needs_allow_leakage(
    prepare, make_split, output, tmp_path, download, run_command, capsys
):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(make_split(**{"case 0": "test"})))
    message = "2 pairs of near-duplicates are in two splits: test/case 0 and train/case"
    with pytest.raises(InputError, match=message):
        prepare(split_file=path)
    assert not output.exists()

    manifest = prepare(split_file=path, allow_leakage=True)
    assert manifest["leakage"] is True
    leaking = {tuple(sorted(pair[:2])) for pair in manifest["leaking_pairs"]}
    assert leaking == {("case 0", "case 1"), ("case 0", "case 2")}
    assert OvarianTumorDataModule(str(output), image_size=32).leakage

    arguments = ["--source", download, "--output", tmp_path / "by_command", "--size", 32]
    arguments += ["--split_file", path, "--allow_leakage"]
    assert run_command("prepare_data", *arguments) == 0
    printed = capsys.readouterr().out
    assert "14 groups of near-duplicates with leakage: 2 pairs are in two splits" in printed


@pytest.fixture
def prepare_official(download, stems, tmp_path, output):
    """A function that prepares the download by its lists, the first so many stems for train."""
    source = tmp_path / "numbered"
    names = []  # a list can't hold the stems of the download, which have spaces
    for number, stem in enumerate(stems):
        name = str(1000 * (number // 3) + number)
        names.append(name)
        for kind, suffix in (("images", "JPG"), ("annotations", "PNG")):
            (source / kind).mkdir(parents=True, exist_ok=True)
            target = source / kind / f"{name}.{suffix}"
            target.write_bytes((download / kind / f"{stem}.{suffix}").read_bytes())

    def run(train_count: int, **options):
        of_train = [f"{name}.JPG" for name in names[:train_count]]
        (source / "train.txt").write_text("\n".join(of_train))
        (source / "val.txt").write_text("\n".join(names[train_count:]))
        return prepare_dataset(source, output, size=32, split="official", **options)

    return run


def test_official_lists_make_the_test_split_and_groups_make_valid(prepare_official):
    manifest = prepare_official(30)
    groups = column(manifest, "group")
    splits = column(manifest, "split")
    assert set(splits.values()) == set(SPLITS)
    assert list(splits.values()).count("test") == 10
    assert len({(groups[stem], splits[stem]) for stem in groups}) == 14


def test_official_lists_that_divide_a_group_are_leakage(prepare_official):
    message = "pairs of near-duplicates are in two splits.*--allow_leakage"
    with pytest.raises(InputError, match=message):
        prepare_official(31)
    assert prepare_official(31, allow_leakage=True)["leakage"] is True


def test_split_is_the_same_at_every_size(tmp_path, save_png):
    """Near-duplicates that look alike only when they are shrunk are told apart at each size."""
    source = tmp_path / "in"
    rng = np.random.default_rng(0)
    for number in range(12):
        coarse = rng.integers(0, 255, (12, 16, 3), np.uint8)
        image = cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC)
        save_png(source / "images" / f"{number}.png", image)
        save_png(source / "annotations" / f"{number}.png", draw_annotation(240, 320))
    found = []
    for size, fit in ((32, "letterbox"), (128, "stretch"), (512, "letterbox")):
        manifest = prepare_dataset(source, tmp_path / f"{size}", size=size, fit=fit)
        found.append((column(manifest, "group"), column(manifest, "split")))
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
def test_real_pairs_become_a_dataset(shared_file, output):
    manifest = prepare_dataset(shared_file("data/OTU_2d"), output, size=128)
    assert len(manifest["items"]) == 1218
    assert not manifest["failures"]
    assert len(set(column(manifest, "group").values())) == 722  # as at every other size
    # The split of all results so far, which were prepared at 512.
    train = [item["stem"] for item in manifest["items"] if item["split"] == "train"]
    assert content_digest(train).startswith("fa5cc58eef8f")
    assert audit_tree(output).leaks == []


@pytest.mark.slow
def test_independent_detector_finds_no_leakage_in_the_real_split(shared_file, output):
    """Correlation of 32 x 32 thumbnails of whole source images, which the grouping does not use."""
    source = shared_file("data/OTU_2d")
    items = prepare_dataset(source, output, size=32)["items"]
    thumbnails = []
    for item in items:
        grey = np.array(Image.open(source / item["source"]).convert("L"))
        thumbnail = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
        thumbnails.append(thumbnail.ravel())
    splits = np.array([item["split"] for item in items])
    across = splits[:, None] != splits
    similar = np.corrcoef(np.float32(thumbnails)) > 0.9
    assert similar.sum() > len(items) + 200
    assert not (similar & across).any()


def test_edited_file_of_the_same_size_makes_another_dataset(source, output):
    prepare_dataset(source, output, size=32)
    path = source / "images" / "1.JPG"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="--overwrite"):
        prepare_dataset(source, output, size=32)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("OTU_2d/prepared", "lies in .*OTU_2d, which is read"),
        ("OTU_2d", "OTU_2d lies in the output folder"),
        ("", "OTU_2d lies in the output folder"),
    ],
)
def test_output_and_source_in_one_another_are_an_error(source, place, message):
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(InputError, match=message):
        prepare_dataset(source, source.parent / place, size=32, overwrite=True)
    assert sorted(source.parent.rglob("*")) == before


def test_output_in_a_named_folder_is_an_error_and_beside_it_is_none(source, save_png):
    for path in (source / "annotations").iterdir():
        save_png(path, draw_annotation(*np.array(Image.open(path)).shape[:2])[..., 2])
    reading = Reading(images=source / "images", masks=source / "annotations")
    with pytest.raises(InputError, match="lies in .*images, which is read"):
        prepare_dataset(None, source / "images" / "out", size=32, reading=reading)
    assert prepare_dataset(None, source / "out", size=32, reading=reading)["items"]


def test_names_of_decomposed_letters_are_prepared_once(source, output):
    for folder in (source / "images", source / "annotations"):
        for path in folder.iterdir():
            path.rename(path.with_name(unicodedata.normalize("NFD", f"ä{path.name}")))
    first = prepare_dataset(source, output, size=32)
    assert first["items"][0]["stem"] == "ä1"
    assert prepare_dataset(source, output, size=32) == first


# OTU_3d, with contrast agent


@pytest.fixture
def ceus(source):
    """The same pairs, with annotations in a colour that is no category of OTU_2d."""
    for path in (source / "annotations").iterdir():
        annotation = np.array(Image.open(path))
        annotation[annotation.any(axis=2)] = (128, 0, 64)
        Image.fromarray(annotation).save(path)
    return source


def test_every_colour_of_ceus_is_lesion(ceus, output):
    manifest = prepare_dataset(ceus, output, size=32, fit="stretch", reading=Reading(kind="ceus"))
    assert len(manifest["items"]) == 30
    assert (manifest["kind"], manifest["categories"]) == ("ceus", ["lesion"])
    for item in manifest["items"]:
        _, mask, categories = read_kinds(output, item)
        assert set(np.unique(mask)) == {0, 255}
        assert np.array_equal(categories > 0, mask > 0)
        assert mask.mean() / 255 == pytest.approx(1 / 16, rel=0.3)


def test_binary_annotation_of_ceus_comes_first(ceus, output):
    for number in range(1, 31):
        colour = np.array(Image.open(ceus / "annotations" / f"{number}.PNG"))
        binary = np.zeros(colour.shape[:2], np.uint8)
        binary[-12:, -12:] = 255
        Image.fromarray(binary).save(ceus / "annotations" / f"{number}_binary.PNG")
    manifest = prepare_dataset(ceus, output, size=32, fit="stretch", reading=Reading(kind="ceus"))
    _, mask, _ = read_kinds(output, manifest["items"][0])
    assert mask[-1, -1] == 255 and mask[10, 10] == 0


def test_annotation_of_ceus_of_another_size_is_a_failure(ceus, output, save_png):
    save_png(ceus / "annotations" / "7.PNG", draw_annotation(20, 20))
    manifest = prepare_dataset(ceus, output, size=32, reading=Reading(kind="ceus"))
    (failure,) = manifest["failures"]
    assert "7.JPG, its annotation and its mask differ in size (83 x 47, 20 x 20" in failure


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "folders"}, "--kind has no meaning for the layout folders"),
        ({"kind": "mri"}, "Unknown kind 'mri'. Choose one of: b-mode, ceus"),
    ],
)
def test_kind_that_does_not_fit_is_refused(options, message, ceus, output):
    reading = Reading(kind=options.pop("kind", "ceus"))
    with pytest.raises(InputError, match=message):
        prepare_dataset(ceus, output, size=32, reading=reading, **options)
