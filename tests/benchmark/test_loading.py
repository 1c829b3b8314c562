import pytest

from ovseg.benchmark.loading import PIPELINE_ONLY, measure_loading
from ovseg.core.errors import InputError


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
