import pytest

from ovseg.benchmark.loading import ALONE, measure_loading
from ovseg.core.errors import InputError


def test_every_case_is_measured(phantom_root):
    rows = measure_loading(
        phantom_root, 48, ("none", "flips"), (0, 1), repeats=2, images=4, batch_size=2
    )
    cases = {(row["pipeline"], row["loader"], row["workers"]) for row in rows}
    loaded = {
        (name, loader, count)
        for name in ("none", "flips")
        for loader in ("cache", "decode")
        for count in (0, 1)
    }
    assert cases == loaded | {("flips", ALONE, 0)} and len(rows) == 9
    for row in rows:
        assert 0 < row["lowest"] <= row["images_per_second"] <= row["highest"] and row["size"] == 48


def test_too_few_images_to_measure_is_an_error(phantom_root):
    with pytest.raises(InputError, match="has 14 training images, too few to measure"):
        measure_loading(phantom_root, 48, ("none",), (0,), batch_size=8)
