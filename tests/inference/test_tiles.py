"""Pictures that are larger than the network's square, in tiles."""

import csv
import shutil

import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.boxes import cut
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.inference.postprocessing import Postprocessing
from ovseg.inference.predictor import Predictor
from ovseg.inference.tiles import predict_in_tiles, split_tiles, tile_starts

SIDE = 32  # of the square of `run`


@pytest.fixture
def predictor(run) -> Predictor:
    return Predictor.load(run, "cpu")


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """A picture of 64 x 96."""
    return np.ascontiguousarray(make_phantom(4, 96)[0][:64])


def test_tiles_are_spread_from_edge_to_edge():
    assert tile_starts(40, 40, 0.25) == [0]
    assert tile_starts(30, 40, 0.25) == [0]
    assert tile_starts(41, 40, 0.0) == [0, 1]
    assert tile_starts(80, 40, 0.0) == [0, 40]
    assert tile_starts(100, 40, 0.25) == [0, 30, 60]
    assert tile_starts(101, 40, 0.25) == [0, 20, 41, 61]


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (64, 40), (100, 7), (5, 131)])
@pytest.mark.parametrize("overlap", [0.0, 0.125, 0.5, 0.75])
def test_shares_of_each_pixel_sum_to_one(size, overlap):
    total = np.zeros(size)
    for tile in split_tiles(*size, SIDE, overlap):
        assert max(tile.share.shape) <= SIDE
        assert tile.share.min() > 0
        cut(total, tile.box)[:] += tile.share
    assert np.abs(total - 1).max() < 1e-5


def test_tile_of_a_narrow_picture_is_not_stretched():
    """What lies outside of the picture is black, and left out of the result."""
    picture = np.full((10, 90, 3), 200, np.uint8)
    seen = []

    def predict(pictures):
        seen.extend(pictures)
        return [(part[None, ..., 0] / np.float32(255), part[..., 0] / 255) for part in pictures]

    probs, variance = predict_in_tiles(predict, [picture], 40, 0.25, batch_size=2)[0]
    assert {part.shape for part in seen} == {(40, 40, 3)}
    for part in seen:
        assert (part[15:25] == 200).all()
        assert (part[:15] == 0).all() and (part[25:] == 0).all()
    np.testing.assert_allclose(probs, np.full((1, 10, 90), 200 / 255), rtol=1e-5)
    np.testing.assert_allclose(variance, np.full((10, 90), 200 / 255), rtol=1e-5)


@pytest.mark.parametrize("tiles", [False, True, "0.25", -0.1, 0.8, float("nan")])
def test_overlap_that_is_no_share_is_an_error(predictor, large, tiles):
    with pytest.raises(InputError, match=r"tiles is .*, expected the share .* 0\.\.0\.75"):
        predictor.predict(large, tiles=tiles)


def test_prediction_changes_smoothly_from_tile_to_tile():
    """Two tiles of 40 that overlap by 20, of probability 0 and 1."""
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, 0] = 9  # only the first tile begins so

    def predict(pictures):
        return [(np.full((1, 40, 40), float(part[0, 0, 0] == 0)), None) for part in pictures]

    probs = predict_in_tiles(predict, [picture], 40, 0.5, batch_size=4)[0][0]
    row = probs[0, 7]
    assert (row[:20] == 0).all()
    assert (row[40:] == 1).all()
    assert (np.diff(row[20:40]) > 0).all()
    assert row[29] + row[30] == pytest.approx(1)
    assert np.array_equal(probs[0], np.tile(row, (40, 1)))


def test_many_tiles_go_through_the_network_in_batches():
    picture = np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8)
    counts = []

    def predict(pictures):
        counts.append(len(pictures))
        assert all(max(part.shape[:2]) == 40 for part in pictures)
        red = [part[None, ..., 0] / np.float32(255) for part in pictures]
        return [(probs, probs[0] / 4) for probs in red]

    probs, variance = predict_in_tiles(predict, [picture], 40, 0.25, batch_size=4)[0]
    assert set(counts[:-1]) == {4}
    assert sum(counts) == 10 * 14
    assert np.allclose(probs[0], picture[..., 0] / 255, atol=1e-6)
    assert np.allclose(variance, picture[..., 0] / 255 / 4, atol=1e-6)


def test_picture_that_fits_into_the_square_is_predicted_whole(predictor):
    picture = make_phantom(4, SIDE)[0]
    sizes = [picture, picture[:20], picture[:, :7], picture[:1, :1]]
    whole = predictor.predict(sizes, uncertainty=True)
    tiled = predictor.predict(sizes, uncertainty=True, tiles=0.25)
    for found, expected in zip(tiled, whole, strict=True):
        assert np.array_equal(found.probs, expected.probs)
        assert np.array_equal(found.labels, expected.labels)
        assert np.array_equal(found.uncertainty, expected.uncertainty)


def test_tiles_without_overlap_are_predictions_of_parts(predictor, large):
    parts = [large[top : top + 32, left : left + 32] for top in (0, 32) for left in (0, 32, 64)]
    found = [prediction.probs for prediction in predictor.predict(parts)]
    expected = np.block([found[:3], found[3:]])
    tiled = predictor.predict(large, tiles=0.0)
    assert np.allclose(tiled.probs, expected, atol=1e-6)
    assert np.abs(tiled.probs - predictor.predict(large).probs).max() > 0.01


def test_picture_that_is_larger_on_one_side_keeps_its_own_resolution(predictor, large):
    strip = large[:20]
    parts = [strip[:, left : left + 32] for left in (0, 32, 64)]
    found = [prediction.probs for prediction in predictor.predict(parts)]
    assert np.allclose(predictor.predict(strip, tiles=0.0).probs, np.hstack(found), atol=1e-6)


def test_large_and_small_pictures_keep_their_order(predictor, large):
    small = make_phantom(5, SIDE)[0]
    alone = [predictor.predict(picture, tiles=0.25) for picture in (small, large, small)]
    together = predictor.predict([small, large, small], tiles=0.25)
    for found, expected in zip(together, alone, strict=True):
        assert np.allclose(found.probs, expected.probs, atol=1e-6)


def test_members_of_an_ensemble_have_tiles_of_their_own_size(run, large_run, ensemble, large):
    members = [
        Predictor.load(member, "cpu").predict(large, tiles=0.5).probs for member in (run, large_run)
    ]
    found = Predictor.load(ensemble, "cpu").predict(large, tiles=0.5)
    assert np.allclose(found.probs, np.mean(members, axis=0), atol=1e-6)


def test_flips_and_uncertainty_are_those_of_the_tiles(run, large, tmp_path, write_postprocessing):
    folder = shutil.copytree(run, tmp_path / "run")
    write_postprocessing(folder, Postprocessing(("horizontal",)))
    predictor = Predictor.load(folder, "cpu")
    found = predictor.predict(large, uncertainty=True, tiles=0.0)
    part = predictor.predict(large[:32, :32], uncertainty=True)
    assert np.allclose(found.probs[:32, :32], part.probs, atol=1e-6)
    assert np.allclose(found.uncertainty[:32, :32], part.uncertainty, atol=1e-6)


def test_exported_file_predicts_tiles_as_its_run_does(exported, large):
    of_run = Predictor.load(exported, "cpu").predict(large, tiles=0.25)
    of_file = Predictor.load(exported / "export" / "model.onnx").predict(large, tiles=0.25)
    assert np.allclose(of_file.probs, of_run.probs, atol=1e-4)


@pytest.mark.parametrize("overlap", [-0.1, 0.8, float("nan")])
def test_overlap_out_of_range_is_an_error(predictor, large, overlap):
    with pytest.raises(InputError, match="tiles is .*, expected the share .* 0..0.75, such as 0"):
        predictor.predict(large, tiles=overlap)


def test_command_writes_the_masks_of_tiles_and_warns(
    run, large, tmp_path, run_command, capsys, read_png, save_png
):
    save_png(tmp_path / "in" / "large.png", large)
    command = ["infer", "--run", run, "--images", tmp_path / "in", "--device", "cpu"]
    output = tmp_path / "out"
    assert run_command(*command, "--output", output, "--tiles", "0.25") == 0
    warning = "has never seen a part of one; compare some of the masks with those without --tiles"
    assert capsys.readouterr().err.count(warning) == 1
    prediction = Predictor.load(run, "cpu").predict(large, tiles=0.25)
    assert np.array_equal(read_png(output / "large.png"), prediction.labels * 255)
    with open(output / "predictions.csv", encoding="utf-8", newline="") as file:
        assert [int(row["area_pixels"]) for row in csv.DictReader(file)] == [prediction.area]
    assert run_command(*command, "--output", tmp_path / "bad", "--tiles", "1") == 2
    assert "tiles is 1.0, expected the share" in capsys.readouterr().err
