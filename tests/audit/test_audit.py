import json
import re
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from ovseg.audit.files import BROKEN, REMARKS, is_doppler, measure_colours
from ovseg.audit.findings import audit_tree
from ovseg.audit.report import report_audit
from ovseg.cli.main import main
from ovseg.core.errors import InputError
from ovseg.data.prepare.otu2d import prepare_dataset
from ovseg.data.prepare.phantoms import make_phantom, write_phantoms


@pytest.fixture
def tree(tmp_path):
    """10 different phantoms of 96 x 96 that say not that they are phantoms: 7 train, 1 or 2 valid, 1 or 2 test."""
    write_phantoms(tmp_path / "tree", 10, size=96, seed=5)
    (tmp_path / "tree" / "manifest.json").unlink()
    for folder in (tmp_path / "tree").glob("*/categories"):
        shutil.rmtree(folder)
    return tmp_path / "tree"


def read(path):
    return np.array(Image.open(path))


def copy_pair(tree, source, target, change=lambda image: image):
    for kind in ("images", "masks"):
        (split, stem), (to_split, to_stem) = source.split("/"), target.split("/")
        picture = np.ascontiguousarray(change(read(tree / split / kind / f"{stem}.png")))
        Image.fromarray(picture).save(tree / to_split / kind / f"{to_stem}.png")


def faults(tree):
    return [(problem.kind, problem.file) for problem in audit_tree(tree).problems]


def test_a_sound_tree_passes(tree):
    audit = audit_tree(tree)
    assert audit.passed and not audit.problems and not audit.copies and len(audit.entries) == 10
    entry = audit.entries[0]
    mask, image = read(tree / entry.mask), read(tree / entry.image)
    assert entry.lesion == pytest.approx((mask > 0).mean()) and (entry.height, entry.width) == (
        96,
        96,
    )
    assert image.mean() < entry.brightness < 255 and entry.usable and not entry.doppler


def cut_short(path):
    path.write_bytes(path.read_bytes()[:200])


def save(array):
    return lambda path: Image.fromarray(array).save(path)


FAULTS = {
    "unreadable": ("train/images/phantom_1.png", cut_short),
    "image without mask": ("train/masks/phantom_1.png", lambda path: path.unlink()),
    "mask without image": ("train/images/phantom_1.png", lambda path: path.unlink()),
    "sizes differ": ("train/masks/phantom_1.png", save(np.eye(50, dtype=np.uint8) * 255)),
    "no binary mask": (
        "train/masks/phantom_1.png",
        save(np.arange(9216, dtype=np.int32).astype(np.uint8).reshape(96, 96)),
    ),
    "two of one stem": ("train/images/phantom_1.bmp", save(np.zeros((96, 96, 3), np.uint8))),
    "empty mask": ("train/masks/phantom_1.png", save(np.zeros((96, 96), np.uint8))),
    "full mask": ("train/masks/phantom_1.png", save(np.full((96, 96), 255, np.uint8))),
    "no picture": ("train/masks/Thumbs.db", lambda path: path.touch()),
    "missing folder": ("valid/masks", shutil.rmtree),
    "manifest differs": (
        "manifest.json",
        lambda path: path.write_text('{"items": [{"split": "test", "stem": "lost"}]}'),
    ),
    "bad categories": ("train/categories/phantom_1.png", save(np.full((96, 96), 77, np.uint8))),
}


@pytest.mark.parametrize("kind", BROKEN | REMARKS)
def test_every_fault_is_found_and_named_and_stops_nothing(tree, kind):
    name, damage = FAULTS[kind]
    (tree / name).parent.mkdir(exist_ok=True)
    damage(tree / name)
    audit = audit_tree(tree)
    [first, *_] = [problem for problem in audit.problems if problem.kind == kind]
    assert (first.file == name) or kind in (
        "image without mask",
        "mask without image",
        "manifest differs",
        "two of one stem",
    )
    assert "phantom_1" in first.file or kind in ("no picture", "missing folder", "manifest differs")
    assert audit.passed == (kind in REMARKS)
    assert sum(entry.usable for entry in audit.entries) >= 8 and first.message


def test_unreadable_masks_categories_and_manifests_are_named_too(tree):
    names = ["train/categories/phantom_0.png", "train/masks/phantom_2.png", "manifest.json"]
    (tree / "train" / "categories").mkdir()
    for name in names:
        (tree / name).write_bytes(b"no picture")
    assert sorted(faults(tree)) == sorted(("unreadable", name) for name in names)


def test_every_fault_at_once_is_found_in_one_audit(tree):
    cut_short(tree / "train" / "images" / "phantom_1.png")
    (tree / "train" / "masks" / "phantom_2.png").unlink()
    save(np.zeros((96, 96), np.uint8))(tree / "train" / "masks" / "phantom_3.png")
    copy_pair(tree, "train/phantom_4", "test/copied")
    audit = audit_tree(tree)
    assert {problem.kind for problem in audit.problems} == {
        "unreadable",
        "image without mask",
        "empty mask",
    }
    assert len(audit.leaks) == 1 and sum(entry.usable for entry in audit.entries) == 9


def test_masks_of_ones_need_the_threshold_that_training_needs(tree):
    for path in tree.glob("*/masks/*.png"):
        save(read(path) // 255)(path)
    assert len(audit_tree(tree).broken) == 10 and audit_tree(tree, mask_threshold=0).passed


CHANGES = {
    "same pixels": lambda image: image,
    "near-duplicate": lambda image: cv2.convertScaleAbs(image, alpha=1.3),
    "turned by 90": lambda image: np.rot90(image, -1),
    "turned by 180": lambda image: image[::-1, ::-1],
    "turned by 270": lambda image: np.rot90(image),
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "transposed": lambda image: image.swapaxes(0, 1),
    "transposed across": lambda image: image[::-1, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_in_every_orientation_across_and_within_splits(tree, change):
    copy_pair(tree, "train/phantom_0", "test/copied", CHANGES[change])
    copy_pair(tree, "train/phantom_1", "train/other", CHANGES[change])
    Image.open(tree / "test/images/copied.png").save(tree / "test/images/copied.bmp")
    (tree / "test/images/copied.png").unlink()
    leak, within = audit_tree(tree).copies
    assert leak.leaks and (leak.first.name, leak.second.name) == ("train/phantom_0", "test/copied")
    assert not within.leaks and {within.first.name, within.second.name} == {
        "train/phantom_1",
        "train/other",
    }
    kind = change if change in ("same pixels", "near-duplicate") else "turned copy"
    assert leak.kind == kind and leak.similarity > 0.6 and (leak.how == change or kind == change)


def test_a_byte_for_byte_copy_is_the_same_file(tree):
    shutil.copy(tree / "train/images/phantom_0.png", tree / "test/images/copied.png")
    [leak] = audit_tree(tree).leaks
    assert leak.kind == "same file"


def test_phantoms_are_compared_exactly_only(phantom_root, tmp_path):
    shutil.copytree(phantom_root, tmp_path / "tree")
    assert audit_tree(tmp_path / "tree").passed and audit_tree(tmp_path / "tree").exact_only
    copy_pair(tmp_path / "tree", "train/phantom_0", "test/copied")
    summary = report_audit(tmp_path / "tree")
    assert summary["leaks"] == 1 and "phantoms" in summary["compared_by"]
    assert (
        "file contents and pixels only" in (tmp_path / "tree" / "audit" / "audit.html").read_text()
    )


def test_doppler_is_red_or_much_blue_and_not_yellow():
    image = make_phantom(0)[0]
    assert not is_doppler(*measure_colours(image))
    for colour, found in (
        ((220, 30, 20), True),
        ((20, 40, 230), True),
        ((255, 255, 0), False),
        ((0, 255, 0), False),
    ):
        painted = cv2.circle(image.copy(), (128, 150), 14, colour, -1)
        assert is_doppler(*measure_colours(painted)) == found, colour
    text = cv2.putText(image.copy(), "SRI", (220, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (70, 70, 220))
    assert measure_colours(text)[1] > 0 and not is_doppler(*measure_colours(text))


def test_calipers_saved_as_jpeg_are_not_doppler(tree):
    image = cv2.drawMarker(make_phantom(1)[0], (120, 140), (255, 255, 0), cv2.MARKER_CROSS, 14, 2)
    encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
    assert not is_doppler(*measure_colours(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]))


def test_report_counts_and_pictures_everything(tree, save_png):
    copy_pair(tree, "train/phantom_0", "test/copied", lambda image: image[::-1])
    image = cv2.circle(read(tree / "valid/images/phantom_7.png"), (48, 60), 9, (220, 30, 20), -1)
    save_png(tree / "valid/images/phantom_7.png", image)
    summary = report_audit(tree)
    assert json.loads((tree / "audit" / "audit.json").read_text()) == summary
    assert summary["splits"]["train"]["images"] == 7 and summary["splits"]["all"]["images"] == 11
    assert summary["splits"]["valid"]["doppler"] == summary["splits"]["all"]["doppler"] == 1
    assert (
        summary["copies"][0]["first"] == "train/images/phantom_0.png"
        and summary["copies"][0]["across_splits"]
    )
    assert summary["splits"]["all"]["sizes"] == {"96 x 96": 11} and not summary["passed"]
    names = {path.name for path in (tree / "audit").iterdir()}
    samples = {f"samples_{split}.jpg" for split in ("train", "valid", "test")}
    assert (
        samples | {"leakage.jpg", "doppler.jpg", "Statistics.png", "lesion.png", "brightness.png"}
        < names
    )


def test_page_needs_nothing_beside_it_and_escapes_names(tree):
    copy_pair(tree, "train/phantom_0", "test/a<b>")
    report_audit(tree)
    page = (tree / "audit" / "audit.html").read_text()
    assert "http" not in page and "a&lt;b&gt;" in page and "a<b>" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,22})', page)
    assert len(sources) >= 7 and all(source.startswith("data:image/") for source in sources)


def test_categories_are_counted(tmp_path, save_png):
    rng = np.random.default_rng(0)
    for number in range(30):
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[10:30, 20:40] = (0, 0, 64) if number % 2 else (64, 0, 0)
        save_png(
            tmp_path / f"in/images/{100 * number}.JPG", rng.integers(0, 255, (64, 64, 3), np.uint8)
        )
        save_png(tmp_path / f"in/annotations/{100 * number}.PNG", picture)
    prepare_dataset(tmp_path / "in", tmp_path / "out", size=64)
    summary = report_audit(tmp_path / "out")
    assert (
        summary["splits"]["all"]["categories"] == {"chocolate cyst": 15, "teratoma": 15}
        and summary["passed"]
    )
    assert (
        sum(
            summary["splits"][split]["categories"]["teratoma"]
            for split in ("train", "valid", "test")
        )
        == 15
    )
    save_png(tmp_path / "out/valid/categories/x.png", np.zeros((2, 2), np.uint8))
    stem = summary["images"][0]["stem"]
    save_png(tmp_path / f"out/train/categories/{stem}.png", np.zeros((2, 2), np.uint8))
    assert faults(tmp_path / "out") == [("sizes differ", f"train/categories/{stem}.png")]
    save_png(tmp_path / f"out/train/categories/{stem}.png", np.zeros((64, 64), np.uint8))
    assert faults(tmp_path / "out") == [("bad categories", f"train/categories/{stem}.png")]


def test_command_exits_with_1_for_leaks_and_faults_and_prints_them(tree, tmp_path, capsys):
    where = ["audit_data", "--data", str(tree), "--output", str(tmp_path / "out")]
    assert main(where) == 0
    assert "PASSED" in capsys.readouterr().out
    copy_pair(tree, "train/phantom_0", "test/copied")
    assert main([*where, "--overwrite"]) == 1
    assert "same file: 1 pairs across splits" in capsys.readouterr().out
    (tree / "test/images/copied.png").unlink()
    assert main([*where, "--overwrite"]) == 1
    assert "mask without image: 1 (test/masks/copied.png)" in capsys.readouterr().out


def test_wrong_arguments_are_one_clear_error(tree, tmp_path):
    with pytest.raises(InputError, match="There is no folder .*gone"):
        report_audit(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image in train/images"):
        audit_tree(tmp_path / "empty")
    with pytest.raises(InputError, match="--mask-threshold is 255"):
        audit_tree(tree, 255)
    report_audit(tree)
    with pytest.raises(InputError, match="add --overwrite"):
        report_audit(tree)
    with pytest.raises(InputError, match="lies in the output folder"):
        report_audit(tree, tree, overwrite=True)


def test_categories_have_the_names_of_the_manifest(tmp_path):
    write_phantoms(tmp_path / "tree", 10, size=96, seed=5)
    categories = {entry.category for entry in audit_tree(tmp_path / "tree").entries}
    assert categories <= {"cyst", "haze", "solid", "mixed"} and None not in categories
