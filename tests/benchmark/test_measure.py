"""Peers take turns and their numbers fit together."""

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch

from ovseg.benchmark.measure import (
    check_scaling,
    describe_machine,
    measure_peak,
    measure_peers,
    measure_scaling,
    scaling_points,
)
from ovseg.core.errors import InputError


@pytest.fixture
def table(make_work, in_this_process):
    """Two peers of the same network."""
    work = make_work()
    peers = ["torch", "ovseg"]
    return measure_peers(work, peers, repeats=2, warmup=1, start_process=in_this_process)


def test_numbers_of_peers_fit_together(table):
    assert list(table.index) == ["torch", "ovseg"]
    assert (table["least s"] > 0).all()
    assert (table["least s"] <= table["median s"]).all()
    assert (table["median s"] <= table["most s"]).all()
    first = table.loc["torch"]
    assert first["speed"] == 1
    assert first["images/s"] == pytest.approx(1 / first["median s"])
    assert 0 < first["share of peak"] < 1
    assert first["peak MiB"] > 100
    assert table.loc["ovseg", "difference"] < 1e-4


def test_unknown_peer_is_an_error(make_work, in_this_process):
    with pytest.raises(InputError, match="Unknown peer 'caffe'"):
        measure_peers(make_work(), ["torch", "caffe"], start_process=in_this_process)


def test_peak_is_a_rate(make_work):
    assert measure_peak(make_work(), side=64, channels=8) > 0


def test_scaling_covers_every_variable(make_work, in_this_process):
    points = scaling_points(make_work(), sizes=(32,), batch_sizes=(1,))
    table = measure_scaling(points, ["ovseg"], repeats=1, start_process=in_this_process)
    assert list(table["variable"]) == ["image size", "batch size", "layers", "threads"]
    first = table.iloc[0]
    assert first["ns a pixel"] == pytest.approx(first["seconds"] / 32**2 * 1e9)


def test_scaling_changes_one_variable_at_a_time(make_work):
    points = scaling_points(make_work(threads=2))
    values = {}
    for point in points:
        values.setdefault(point.variable, []).append(point.value)
    assert values == {
        "image size": [128, 256, 384, 512, 768, 1024],
        "batch size": [1, 2, 4, 8],
        "layers": [2],
        "threads": [1, 2],
    }
    largest = points[5].work
    assert (largest.image_size, largest.batch_size, largest.threads) == (1024, 1, 2)


def test_scaling_of_a_peer_that_cannot_take_a_point_is_an_error(monkeypatch, make_work):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    points = scaling_points(make_work())
    with pytest.raises(InputError, match="cannot measure monai at image size 128: --image_size is"):
        check_scaling(points, ["ovseg", "monai"])


def test_scaling_of_keras_needs_no_weights_of_ours(make_work, in_this_process):
    pytest.importorskip("tensorflow", reason="needs the extra [tensorflow]")
    points = scaling_points(make_work("infer"), sizes=(32,), batch_sizes=())
    table = measure_scaling(points[:1], ["tensorflow"], repeats=1, start_process=in_this_process)
    assert table["seconds"].iloc[0] > 0


def test_machine_is_described_with_versions_and_work(make_work):
    machine = describe_machine(make_work())
    assert machine["versions"]["torch"] == torch.__version__.split("+")[0]
    assert machine["work"]["image_size"] == 32
