import pytest

from ovseg.benchmark.loading import PIPELINE_ONLY, measure_loading
from ovseg.cli.main import main, run_script
from ovseg.core.errors import InputError
from ovseg.data.augment.sheet import draw_augmentations
from ovseg.data.pairs import read_image


def test_every_case_is_measured(phantom_root):
    table = measure_loading(
        phantom_root, 48, ("none", "flips"), (0, 1), repeats=2, images=4, batch_size=2
    )
    cases = set(zip(table["pipeline"], table["loader"], table["workers"], strict=True))
    assert cases == {
        ("none", "cache", 0),
        ("none", "cache", 1),
        ("none", "decode", 0),
        ("none", "decode", 1),
        ("flips", "cache", 0),
        ("flips", "cache", 1),
        ("flips", "decode", 0),
        ("flips", "decode", 1),
        ("flips", PIPELINE_ONLY, 0),
    }
    assert len(table) == 9
    assert (table["lowest"] > 0).all()
    assert (table["lowest"] <= table["images_per_second"]).all()
    assert (table["images_per_second"] <= table["highest"]).all()
    assert (table["size"] == 48).all()


def test_too_few_images_to_measure_is_an_error(phantom_root):
    with pytest.raises(InputError, match="has 14 training images, too few to measure"):
        measure_loading(phantom_root, 48, ("none",), (0,), batch_size=8)


def test_unknown_pipeline_is_an_error(phantom_root):
    with pytest.raises(InputError, match="odd"):
        measure_loading(phantom_root, 48, ("none", "odd"))


def test_sheet_shows_phantoms_and_a_dataset(phantom_root, tmp_path, monkeypatch):
    draw_augmentations(tmp_path / "a.png", ["flips", "none"], columns=3, side=40)
    assert read_image(tmp_path / "a.png").shape == (2 * 58, 120, 3)
    arguments = [
        "--output",
        str(tmp_path / "b.png"),
        "--root",
        str(phantom_root),
        "--augmentations",
        "standard",
    ]
    monkeypatch.setattr("sys.argv", ["draw_augmentations.py", *arguments])
    assert run_script("draw_augmentations") == 0 and read_image(tmp_path / "b.png").shape == (
        178,
        800,
        3,
    )
    monkeypatch.setattr(
        "sys.argv", ["ovseg", "draw_augmentations", "--output", "x.png", "--augmentations", "odd"]
    )
    assert main() == 2
