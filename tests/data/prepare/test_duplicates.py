import cv2
import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.pairs import list_images
from ovseg.data.prepare.duplicates import (
    ORIENTATIONS,
    NearDuplicate,
    crop_letterbox,
    find_leakage,
    find_near_duplicates,
    find_rotated_copies,
    find_tree_leakage,
    fingerprint,
    fingerprint_files,
    group_images,
)
from ovseg.data.prepare.phantoms import make_phantom

# Numbers of real images that show one examination.
KNOWN = [(38, 39, 40), (82, 84), (85, 88), (120, 122), (144, 146), (182, 183), (192, 194, 195, 446)]
# Numbers of real images that show other planes of one examination.
OTHER_PLANES = [(379, 380, 381), (915, 916, 917), (236, 237, 238)]


def draw_calipers(image: np.ndarray) -> np.ndarray:
    """Two yellow crosses, the dotted line between them and a measurement."""
    yellow = (255, 255, 0)
    image = image.copy()
    for x in range(90, 170, 8):
        cv2.circle(image, (x, 130), 1, yellow, -1)
    for x in (90, 166):
        cv2.drawMarker(image, (x, 130), yellow, cv2.MARKER_CROSS, 12, 2)
    return cv2.putText(image, "1 D 2.54cm", (150, 240), cv2.FONT_HERSHEY_SIMPLEX, 0.5, yellow, 1)


def compress(image: np.ndarray) -> np.ndarray:
    """The image after a strong JPEG compression."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


CHANGES = {
    "calipers": draw_calipers,
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1.4, beta=0),
    "darker": lambda image: cv2.convertScaleAbs(image, alpha=0.6, beta=0),
    "shifted": lambda image: np.roll(image, (12, -15), (0, 1)),
    "smaller": lambda image: cv2.resize(image, (150, 150), interpolation=cv2.INTER_AREA),
    "stretched": lambda image: cv2.resize(image, (300, 200)),
    "letterboxed": lambda image: np.pad(image, ((80, 30), (10, 40), (0, 0))),
    "jpeg": compress,
}


def find(images: list[np.ndarray], stems: list[str]) -> list[NearDuplicate]:
    return find_near_duplicates([fingerprint(image) for image in images], stems)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_changed_copy_is_a_near_duplicate(change, seed):
    image = make_phantom(seed)[0]
    [(first, second, similarity)] = find([image, CHANGES[change](image)], ["a", "b"])
    assert (first, second) == (0, 1)
    assert similarity > 0.6


def test_copies_are_one_group_and_other_phantoms_are_not():
    phantoms = [make_phantom(seed)[0] for seed in range(8)]
    copies = [change(phantoms[2]) for change in CHANGES.values()]
    images = phantoms + copies
    stems = [f"image {number}" for number in range(len(images))]
    groups = group_images(len(images), find(images, stems))
    assert list(groups[8:]) == [groups[2]] * len(copies)
    assert len(set(groups)) == 8


def test_neighbouring_numbers_need_less_similarity():
    """Two phantoms share little but the sector: enough for numbers 7 and 8, not for 7 and 800."""
    prints = [fingerprint(make_phantom(seed, 128)[0]) for seed in range(40)]
    neighbours = set()
    distant = set()
    for i in range(39):
        pair = prints[i : i + 2]
        if find_near_duplicates(pair, ["7", "8"]):
            neighbours.add(i)
        if find_near_duplicates(pair, ["7", "800"]):
            distant.add(i)
    assert distant < neighbours


def set_machine(image: np.ndarray, gain: float, depth_gain: float) -> np.ndarray:
    """The image as a machine of other settings shows it: darker or brighter, more so with depth."""
    rows = np.linspace(0, 1, len(image))[:, None, None]
    return np.clip(image * (gain + depth_gain * rows), 0, 255).astype(np.uint8)


def similarities(images: list[np.ndarray]) -> dict[tuple[int, int], float]:
    """Of each two images, which have the numbers 0, 1, ..."""
    stems = [str(number) for number in range(len(images))]
    prints = [fingerprint(image) for image in images]
    pairs = find_near_duplicates(prints, stems, margin=-9)
    return {(first, second): similarity for first, second, similarity in pairs}


PHANTOMS = [make_phantom(seed, 128)[0] for seed in range(40)]
DARK = (0.5, 0.4)
BRIGHT = (1.4, -0.8)


def test_neighbouring_numbers_of_one_machine_are_more_alike():
    """Numbers 0 and 1 are of one machine, all others of another."""
    dark = [set_machine(image, *DARK) for image in PHANTOMS[:2]]
    same_machine = similarities([*dark, *PHANTOMS[2:]])[0, 1]
    assert same_machine > similarities([dark[0], *PHANTOMS[1:]])[0, 1] + 0.1


def test_two_machines_one_after_the_other_connect_no_more_than_one():
    """Phantoms share their structure, so some are connected; a shared machine adds little."""

    def count(dark: int) -> int:
        machines = [DARK] * dark + [BRIGHT] * (40 - dark)
        images = [set_machine(image, *each) for image, each in zip(PHANTOMS, machines, strict=True)]
        return len(find(images, [str(number) for number in range(40)]))

    assert count(dark=20) <= 1.25 * max(count(dark=0), count(dark=40))


def test_few_images_are_compared_by_structure_alone():
    assert similarities(PHANTOMS[:20])[0, 1] == similarities(PHANTOMS[:2])[0, 1]


def test_same_picture_has_similarity_1_and_distant_numbers_have_no_look():
    found = similarities([PHANTOMS[0], PHANTOMS[0], *PHANTOMS[2:]])
    assert found[0, 1] == 1
    assert found[0, 12] == similarities([PHANTOMS[0], PHANTOMS[12]])[0, 1]


def test_pairs_are_in_order_and_the_same_every_time():
    image = make_phantom(0)[0]
    images = [image, make_phantom(1)[0], CHANGES["brighter"](image), CHANGES["darker"](image)]
    pairs = find(images, list("abcd"))
    assert [pair[:2] for pair in pairs] == [(0, 2), (0, 3), (2, 3)]
    assert find(images, list("abcd")) == pairs


def test_no_images_have_no_near_duplicates():
    assert find_near_duplicates([], []) == []


def test_margin_asks_for_more_similarity():
    image, _ = make_phantom(0, 256)
    fingerprints = [fingerprint(image), fingerprint(draw_calipers(image))]
    [(_, _, similarity)] = find_near_duplicates(fingerprints, ["7", "800"])
    above = similarity - 0.55
    assert len(find_near_duplicates(fingerprints, ["7", "800"], margin=above - 0.01)) == 1
    assert find_near_duplicates(fingerprints, ["7", "800"], margin=above + 0.01) == []
    assert find_rotated_copies([]) == []


def test_groups_are_what_pairs_connect():
    assert list(group_images(5, [(0, 2, 0.9), (2, 4, 0.8)])) == [0, 1, 0, 2, 0]
    assert list(group_images(2, [])) == [0, 1]


def test_leakage_is_the_pairs_across_splits():
    pairs = [(0, 1, 0.7), (1, 2, 0.8), (2, 3, 0.9), (0, 3, 0.85)]
    leaks = find_leakage(pairs, ["train", "train", "test", "test"])
    assert leaks == [(0, 3, 0.85), (1, 2, 0.8)]


def test_black_and_flat_images_have_a_fingerprint():
    black = np.zeros((20, 20, 3), np.uint8)
    flat = np.full((9, 9, 3), 90, np.uint8)
    pairs = find([black, flat, make_phantom(0)[0]], list("abc"))
    assert all(pair[:2] == (0, 1) for pair in pairs)


def test_letterbox_is_cut_off_and_a_black_picture_stays():
    grey = np.zeros((20, 30), np.uint8)
    assert crop_letterbox(grey).shape == (20, 30)
    grey[4:10, 5:25] = 100
    assert np.array_equal(crop_letterbox(grey), np.full((6, 20), 100))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_copy_in_another_orientation_is_found_with_the_way_back(orientation):
    original = make_phantom(3, 128)[0]
    others = [make_phantom(seed, 128)[0] for seed in range(3)]
    # The inverse of a move: the other rotation; a mirror image is its own inverse.
    inverse = {"rotated by 90": "rotated by 270", "rotated by 270": "rotated by 90"}
    move = ORIENTATIONS[inverse.get(orientation, orientation)]
    copy = np.stack([move(original[None, ..., channel])[0] for channel in range(3)], -1)

    prints = [fingerprint(image) for image in (*others, original, np.ascontiguousarray(copy))]
    [(first, second, correlation, found)] = find_rotated_copies(prints)
    assert (first, second, found) == (3, 4, orientation)
    assert correlation > 0.95


def test_tree_is_searched_across_its_splits(tmp_path, save_png):
    for seed, split in enumerate(("train", "valid", "test")):
        save_png(tmp_path / split / "images" / f"{split}.png", make_phantom(seed)[0])
    assert find_tree_leakage(tmp_path) == []

    copy = save_png(tmp_path / "test" / "images" / "copy.png", draw_calipers(make_phantom(0)[0]))
    [(first, second, similarity)] = find_tree_leakage(tmp_path)
    assert first.name == "train.png"
    assert second == copy
    assert similarity > 0.6

    with pytest.raises(InputError, match="There is no folder"):
        find_tree_leakage(tmp_path / "gone")


def test_known_near_duplicates_of_the_real_images_are_one_group(shared_file):
    images = list_images(shared_file("data/OTU_2d/images"))
    chosen = [stem for stem in images if int(stem) < 200 or stem == "446"]
    pairs = find_near_duplicates(fingerprint_files([images[stem] for stem in chosen]), chosen)
    groups = group_images(len(chosen), pairs).tolist()
    group_of = {int(stem): group for stem, group in zip(chosen, groups, strict=True)}
    for known in KNOWN:
        assert len({group_of[number] for number in known if number in group_of}) <= 1
    assert np.bincount(groups).max() <= 25


@pytest.mark.parametrize("planes", OTHER_PLANES)
def test_other_planes_of_one_examination_are_one_group(shared_file, planes):
    images = list_images(shared_file("data/OTU_2d/images"))
    chosen = [stem for stem in images if abs(int(stem) - planes[0]) < 60]
    pairs = find_near_duplicates(fingerprint_files([images[stem] for stem in chosen]), chosen)
    groups = group_images(len(chosen), pairs)
    assert len({groups[chosen.index(str(n))] for n in planes if str(n) in chosen}) == 1
