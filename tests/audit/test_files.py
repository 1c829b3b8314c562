"""Every fault of a file is found, and colour Doppler is recognised."""

import shutil

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


def found_in(tree) -> list[tuple[str, str]]:
    return [(problem.kind, problem.file) for problem in audit_tree(tree).problems]


IMAGE = "train/images/phantom_1.png"
MASK = "train/masks/phantom_1.png"
SECOND = "train/images/phantom_1.bmp"
CATEGORIES = "train/categories/phantom_1.png"
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
    "no picture": ("train/masks/Thumbs.db", lambda path: path.touch(), "train/masks/Thumbs.db"),
    "missing folder": ("valid/masks", shutil.rmtree, "valid/masks"),
    "manifest differs": ("manifest.json", list_lost_image, "test/lost"),
    "bad categories": (CATEGORIES, write(np.full((96, 96), 77, np.uint8)), CATEGORIES),
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
