import cv2
import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.pairs import list_images
from ovseg.data.prepare.duplicates import (
    find_leakage,
    find_near_duplicates,
    find_tree_leakage,
    fingerprint,
    fingerprint_files,
    group_images,
)
from ovseg.data.prepare.phantoms import make_phantom

KNOWN = [(38, 39, 40), (82, 84), (85, 88), (120, 122), (144, 146), (182, 183), (192, 194, 195, 446)]


def with_calipers(image: np.ndarray) -> np.ndarray:
    """Two yellow crosses, the dotted line between them and a measurement."""
    image = image.copy()
    for x in range(90, 170, 8):
        cv2.circle(image, (x, 130), 1, (255, 255, 0), -1)
    for x in (90, 166):
        cv2.drawMarker(image, (x, 130), (255, 255, 0), cv2.MARKER_CROSS, 12, 2)
    return cv2.putText(
        image, "1 D 2.54cm", (150, 240), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 0), 1
    )


CHANGES = {
    "calipers": with_calipers,
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1.4, beta=0),
    "darker": lambda image: cv2.convertScaleAbs(image, alpha=0.6, beta=0),
    "shifted": lambda image: np.roll(image, (12, -15), (0, 1)),
    "smaller": lambda image: cv2.resize(image, (150, 150), interpolation=cv2.INTER_AREA),
    "stretched": lambda image: cv2.resize(image, (300, 200)),
    "letterboxed": lambda image: np.pad(image, ((80, 30), (10, 40), (0, 0))),
    "jpeg": lambda image: cv2.imdecode(
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1
    ),
}


def find(images, stems):
    return find_near_duplicates([fingerprint(image) for image in images], stems)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_a_near_duplicate(change):
    for seed in range(3):
        image = make_phantom(seed)[0]
        (_, _, similarity) = find([image, CHANGES[change](image)], ["a", "b"])[0]
        assert similarity > 0.6


def test_copies_are_one_group_and_other_phantoms_are_not():
    phantoms = [make_phantom(seed)[0] for seed in range(8)]
    images = phantoms + [change(phantoms[2]) for change in CHANGES.values()]
    groups = group_images(len(images), find(images, [f"image {n}" for n in range(len(images))]))
    assert list(groups[8:]) == [groups[2]] * len(CHANGES) and len(set(groups)) == 8


def test_neighbouring_numbers_need_less_similarity():
    """Two phantoms share little but the shape of the sector: enough for numbers 7 and 8, not for 7 and 800."""
    images = [make_phantom(seed)[0] for seed in range(40)]
    loose = {
        pair[:2] for i in range(39) for pair in [(i, i + 1)] if find(images[i : i + 2], ["7", "8"])
    }
    strict = {
        pair[:2]
        for i in range(39)
        for pair in [(i, i + 1)]
        if find(images[i : i + 2], ["7", "800"])
    }
    assert strict < loose


def test_pairs_are_in_order_and_the_same_every_time():
    image = make_phantom(0)[0]
    images = [image, make_phantom(1)[0], CHANGES["brighter"](image), CHANGES["darker"](image)]
    pairs = find(images, list("abcd"))
    assert [pair[:2] for pair in pairs] == [(0, 2), (0, 3), (2, 3)] and pairs == find(
        images, list("abcd")
    )


def test_groups_are_what_pairs_connect():
    assert list(group_images(5, [(0, 2, 0.9), (2, 4, 0.8)])) == [0, 1, 0, 2, 0]
    assert list(group_images(2, [])) == [0, 1] and find_near_duplicates([], []) == []


def test_leakage_is_the_pairs_across_splits():
    pairs = [(0, 1, 0.7), (1, 2, 0.8), (2, 3, 0.9)]
    assert find_leakage(pairs, ["train", "train", "test", "test"]) == [(1, 2, 0.8)]


def test_black_and_flat_images_have_a_fingerprint():
    pairs = find(
        [np.zeros((20, 20, 3), np.uint8), np.full((9, 9, 3), 90, np.uint8), make_phantom(0)[0]],
        list("abc"),
    )
    assert all(pair[:2] == (0, 1) for pair in pairs)


def test_a_tree_is_searched_across_its_splits(tmp_path, save_png):
    for seed, split in enumerate(("train", "valid", "test")):
        save_png(tmp_path / split / "images" / f"{split}.png", make_phantom(seed)[0])
    assert find_tree_leakage(tmp_path) == []
    copy = save_png(tmp_path / "test" / "images" / "copy.png", with_calipers(make_phantom(0)[0]))
    [(first, second, similarity)] = find_tree_leakage(tmp_path)
    assert (first.name, second) == ("train.png", copy) and similarity > 0.6
    with pytest.raises(InputError, match="There is no folder"):
        find_tree_leakage(tmp_path / "gone")


def test_known_near_duplicates_of_the_real_images_are_one_group(shared_file):
    images = list_images(shared_file("data/OTU_2d/images"))
    chosen = [stem for stem in images if int(stem) < 200 or stem == "446"]
    pairs = find_near_duplicates(fingerprint_files([images[stem] for stem in chosen]), chosen)
    group_of = dict(zip(map(int, chosen), group_images(len(chosen), pairs), strict=True))
    for known in KNOWN:
        assert len({group_of[number] for number in known if number in group_of}) <= 1
    assert np.bincount(list(group_of.values())).max() <= 8
