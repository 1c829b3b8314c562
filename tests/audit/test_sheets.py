from ovseg.audit.findings import audit_tree
from ovseg.audit.sheets import draw_numbers, draw_sheets
from ovseg.data.pictures import read_image


def test_sheets_are_titled_with_what_they_show(tree, copy_pair, tmp_path):
    copy_pair("train/phantom_0", "train/other")
    sheets = draw_sheets(audit_tree(tree), 127, tmp_path)
    assert len(sheets["Copies within a split: 1"]) == 1
    assert len(sheets["Images and masks of train: 8"]) == 8
    assert len(sheets) == 4  # no copies across splits, no colour Doppler
    written = {path.name for path in tmp_path.glob("*.jpg")}
    samples = {f"samples_{split}.jpg" for split in ("train", "valid", "test")}
    assert written == {"duplicates.jpg", *samples}


def test_pictures_say_what_they_show(tree, copy_pair, tmp_path):
    copy_pair("train/phantom_0", "train/other")
    sheets = draw_sheets(audit_tree(tree), 127, tmp_path)
    (pair,) = sheets["Copies within a split: 1"]
    assert "train/phantom_0" in pair.text
    assert "train/other" in pair.text
    assert "similarity 1.00" in pair.text
    assert sheets["Images and masks of test: 2"][0].text.startswith("test/phantom_8, lesion ")


def test_long_lists_show_their_first_pictures(tree, copy_pair, tmp_path):
    for number in range(6):
        copy_pair("train/phantom_0", f"train/other_{number}")
    sheets = draw_sheets(audit_tree(tree), 127, tmp_path)
    assert len(sheets["Images and masks of train: 13, 12 of them shown"]) == 12
    assert "Copies within a split: 21" in sheets


def test_sheet_has_two_pictures_and_a_line_for_each_copy(tree, copy_pair, tmp_path):
    copy_pair("train/phantom_0", "train/other")
    draw_sheets(audit_tree(tree), 127, tmp_path)
    assert read_image(tmp_path / "duplicates.jpg").shape == (200 + 18, 2 * 200 + 4, 3)


def test_numbers_of_a_tree_become_three_plots(sound_tree, tmp_path):
    plots = draw_numbers(audit_tree(sound_tree), tmp_path)
    assert set(plots) == {"Images per split", "Lesion area, % of the picture", "Mean grey level"}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"Statistics.png", "lesion.png", "brightness.png"}
