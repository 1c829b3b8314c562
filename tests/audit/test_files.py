"""Every fault of a file is found, and colour Doppler is recognised."""

import shutil
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image

from ovseg.audit.files import BROKEN, REMARKS
from ovseg.audit.findings import audit_tree
from ovseg.data.colours import is_doppler, measure_colours
from ovseg.data.prepare.phantoms import make_phantom, write_phantoms


def cut_short(path):
    path.write_bytes(path.read_bytes()[:200])


def remove(path):
    path.unlink()


def write(array):
    return lambda path: Image.fromarray(array).save(path)


def list_lost_image(path):
    path.write_text('{"items": [{"split": "test", "stem": "lost"}]}')


def empty_all(folder):
    for path in folder.iterdir():
        write(np.zeros((96, 96), np.uint8))(path)


def turn_upside_down(path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)


def found_in(tree) -> list[tuple[str, str]]:
    return [(problem.kind, problem.file) for problem in audit_tree(tree).problems]


IMAGE = "train/images/phantom_1.png"
MASK = "train/masks/phantom_1.png"
SECOND = "train/images/phantom_1.bmp"
CATEGORIES = "train/categories/phantom_1.png"
SOFT = np.zeros((96, 96), np.uint8)
SOFT[20:40, 20:40] = 255
SOFT[30, 20] = 100
INVERTED = 255 - SOFT
MANY_VALUES = np.arange(96 * 96, dtype=np.int32).astype(np.uint8).reshape(96, 96)

# Kind -> the file that is damaged, how, and the file that the problem names.
FAULTS = {
    "unreadable": (IMAGE, cut_short, IMAGE),
    "image without mask": (MASK, remove, IMAGE),
    "mask without image": (IMAGE, remove, MASK),
    "sizes differ": (MASK, write(np.eye(50, dtype=np.uint8) * 255), MASK),
    "no binary mask": (MASK, write(MANY_VALUES), MASK),
    "two of one stem": (SECOND, write(np.zeros((96, 96, 3), np.uint8)), IMAGE),
    "empty mask": (MASK, write(np.zeros((96, 96), np.uint8)), MASK),
    "full mask": (MASK, write(np.full((96, 96), 255, np.uint8)), MASK),
    "no picture": ("train/masks/scan.dcm", lambda path: path.touch(), "train/masks/scan.dcm"),
    "missing folder": ("valid/masks", shutil.rmtree, "valid/masks"),
    "manifest differs": ("manifest.json", list_lost_image, "test/lost"),
    "bad categories": (CATEGORIES, write(np.full((96, 96, 3), 77, np.uint8)), CATEGORIES),
    "implausible masks": ("train/masks", empty_all, "train/masks"),
    "white corners": (MASK, write(INVERTED), MASK),
    "soft edges": (MASK, write(SOFT), MASK),
    "EXIF orientation": (IMAGE, turn_upside_down, IMAGE),
}


@pytest.mark.parametrize("kind", BROKEN | REMARKS)
def test_every_fault_is_found_and_named_and_stops_nothing(tree, kind):
    damaged, damage, named = FAULTS[kind]
    (tree / damaged).parent.mkdir(exist_ok=True)
    damage(tree / damaged)
    audit = audit_tree(tree)
    problems = {problem.file: problem for problem in audit.problems if problem.kind == kind}
    assert named in problems
    assert problems[named].message
    assert audit.passed == (kind in REMARKS)
    assert sum(entry.usable for entry in audit.entries) >= 8


def test_unreadable_masks_categories_and_manifests_are_named_too(tree):
    names = ["train/categories/phantom_0.png", "train/masks/phantom_2.png", "manifest.json"]
    (tree / "train" / "categories").mkdir()
    for name in names:
        (tree / name).write_bytes(b"no picture")
    assert sorted(found_in(tree)) == sorted(("unreadable", name) for name in names)


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (np.zeros((2, 2), np.uint8), "sizes differ"),
        (np.zeros((96, 96), np.uint8), "bad categories"),
    ],
)
def test_map_of_categories_must_fit_its_pair(tree, save_png, ids, kind):
    save_png(tree / CATEGORIES, ids)
    assert found_in(tree) == [(kind, CATEGORIES)]


def test_category_of_a_decomposed_name_is_found(tree, read_png, save_png):
    name = "Läsion.png"
    for kind, form in (("images", "NFC"), ("masks", "NFD"), ("categories", "NFD")):
        path = tree / "train" / kind / unicodedata.normalize(form, name)
        source = IMAGE if kind == "images" else MASK
        picture = read_png(tree / source)[::-1]
        save_png(path, picture // 255 if kind == "categories" else picture)
    [entry] = [entry for entry in audit_tree(tree).entries if entry.stem == "Läsion"]
    assert entry.category == "category 1"


def test_mask_of_the_picture_as_it_is_stored_names_the_orientation(tree, save_png):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((96, 50, 3), np.uint8)).save(tree / IMAGE, exif=exif)
    save_png(tree / MASK, SOFT[:, :50])
    problems = [problem for problem in audit_tree(tree).problems if problem.kind == "sizes differ"]
    assert "its EXIF orientation turns it by 90 degrees" in problems[0].message


def test_map_of_categories_without_an_image_is_not_looked_at(tree, save_png):
    save_png(tree / "valid/categories/x.png", np.zeros((2, 2), np.uint8))
    assert found_in(tree) == []


def test_masks_of_ones_need_the_threshold_that_training_needs(tree, read_png, save_png):
    for path in tree.glob("*/masks/*.png"):
        save_png(path, read_png(path) // 255)
    assert len(audit_tree(tree).broken) == 10
    assert audit_tree(tree, mask_threshold=0).passed


def test_categories_have_the_names_of_the_manifest(tmp_path):
    write_phantoms(tmp_path / "tree", 10, size=96, seed=5)
    categories = {entry.category for entry in audit_tree(tmp_path / "tree").entries}
    assert categories <= {"cyst", "haze", "solid", "mixed"}


@pytest.fixture(scope="module")
def phantom():
    """An image of 256 x 256 without colour."""
    return make_phantom(0)[0]


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((220, 30, 20), True),
        ((20, 40, 230), True),
        ((255, 255, 0), False),
        ((0, 255, 0), False),
    ],
)
def test_red_or_much_blue_is_doppler_and_yellow_is_not(phantom, colour, expected):
    painted = cv2.circle(phantom.copy(), (128, 150), 14, colour, -1)
    assert is_doppler(*measure_colours(painted)) == expected


def test_image_without_colour_is_not_doppler(phantom):
    assert not is_doppler(*measure_colours(phantom))


def test_blue_text_is_not_doppler(phantom):
    font = cv2.FONT_HERSHEY_SIMPLEX
    text = cv2.putText(phantom.copy(), "SRI", (220, 20), font, 0.4, (70, 70, 220))
    red, blue = measure_colours(text)
    assert blue > 0
    assert not is_doppler(red, blue)


def test_calipers_saved_as_jpeg_are_not_doppler():
    image = cv2.drawMarker(make_phantom(1)[0], (120, 140), (255, 255, 0), cv2.MARKER_CROSS, 14, 2)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 75])
    decoded = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert not is_doppler(*measure_colours(decoded))


def test_two_categories_in_one_image_are_legal_as_in_training(tmp_path, read_png, save_png):
    write_phantoms(tmp_path / "tree", 10, size=96, seed=5)
    [mask] = tmp_path.glob("tree/*/masks/phantom_1.png")
    ids = read_png(mask) // 255
    ids[:48] *= 2
    save_png(mask.parent.parent / "categories" / "phantom_1.png", ids)
    audit = audit_tree(tmp_path / "tree")
    assert audit.passed
    larger = np.bincount(ids[ids > 0]).argmax()
    [entry] = [entry for entry in audit.entries if entry.stem == "phantom_1"]
    assert entry.category == ["cyst", "haze", "solid", "mixed"][larger - 1]


def test_id_above_the_named_categories_is_a_fault(tmp_path, read_png, save_png):
    write_phantoms(tmp_path / "tree", 10, size=96, seed=5)
    [path] = tmp_path.glob("tree/*/categories/phantom_1.png")
    save_png(path, (read_png(path) > 0) * np.uint8(5))
    kinds = [problem.kind for problem in audit_tree(tmp_path / "tree").problems]
    assert kinds == ["bad categories"]


def test_categories_without_names_are_numbered(tree, read_png, save_png):
    save_png(tree / CATEGORIES, read_png(tree / MASK) // 255 * np.uint8(7))
    audit = audit_tree(tree)
    assert audit.passed
    assert {entry.category for entry in audit.entries} == {"category 7", None}


def test_inverted_masks_are_remarked_on_and_can_be_inverted(tree, read_png, save_png):
    for path in tree.glob("*/masks/*.png"):
        save_png(path, 255 - read_png(path))
    assert [problem.kind for problem in audit_tree(tree).problems] == ["white corners"] * 10
    audit = audit_tree(tree, invert_masks=True)
    assert audit.problems == []
    assert all(entry.lesion < 0.5 for entry in audit.entries)


def test_hidden_files_and_clutter_are_no_remark(tree):
    for name in (".DS_Store", "Thumbs.db"):
        (tree / "train" / "masks" / name).touch()
    (tree / "train" / "images" / "__MACOSX").mkdir()
    assert found_in(tree) == []
    (tree / "train" / "images" / "more").mkdir()
    assert found_in(tree) == [("no picture", "train/images/more")]


def test_folder_of_another_name_is_named(tree):
    (tree / "valid").rename(tree / "val")
    messages = {problem.message for problem in audit_tree(tree).problems}
    assert messages == {"found val, which has another name"}
