import pytest

from ovseg.core.errors import InputError
from ovseg.data.augment.sheet import draw_augmentations
from ovseg.data.pictures import read_image


def test_sheet_shows_a_phantom_without_a_dataset(tmp_path):
    draw_augmentations(tmp_path / "a.png", ["flips", "none"], columns=3, side=40)
    assert read_image(tmp_path / "a.png").shape == (2 * 58, 3 * 40, 3)


def test_sheet_shows_pairs_of_a_dataset(phantom_root, tmp_path, run_command):
    output = tmp_path / "b.png"
    arguments = ["--output", output, "--data", phantom_root, "--augmentations", "standard"]
    assert run_command("draw_augmentations", *arguments) == 0
    assert read_image(output).shape == (178, 5 * 160, 3)


def test_unknown_augmentation_of_a_sheet_is_an_error(tmp_path):
    with pytest.raises(InputError, match="Unknown augmentation 'odd'"):
        draw_augmentations(tmp_path / "c.png", ["odd"])
    assert not (tmp_path / "c.png").exists()
