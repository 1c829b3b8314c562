import pandas as pd
import pytest

from ovseg.benchmark import layers
from ovseg.benchmark.layers import list_layers, measure_layers
from ovseg.models import convolutions


def test_layers_are_measured_in_order_and_once_a_kind(make_work):
    algorithms = ("torch", "torch channels_last", "ovseg")
    table = measure_layers(make_work("train"), repeats=1, algorithms=algorithms)
    assert list(table.index) == [name for name, _, _ in list_layers(make_work())]
    assert table.index[0] == "encoder.0.conv1"
    assert table["what"].iloc[0] == "conv 3->2, 9x9 dilation 3, 32x32"
    assert len(table) == 8
    assert table["what"].nunique() == 7
    milliseconds = table.filter(regex="ward ms$")
    first, second = milliseconds[table["what"].duplicated(keep=False)].to_numpy()
    assert (first == second).all()  # measured once


def test_head_has_torchs_algorithm_only(make_work):
    table = measure_layers(make_work("train"), repeats=1)
    milliseconds = table.filter(regex="ward ms$")
    assert (milliseconds.drop(index="head") > 0).all(axis=None)
    missing = milliseconds.columns[milliseconds.loc["head"].isna()]
    assert list(missing) == ["ovseg forward ms", "ovseg backward ms"]


def test_flops_of_a_layer_are_those_of_its_direct_algorithm(make_work):
    table = measure_layers(make_work("train"), repeats=1, algorithms=())
    expected = 2 * 32 * 32 * 9 * 9 * 3 * 2
    assert table["GFLOP"].iloc[0] * 1e9 == expected


@pytest.mark.parametrize("direct", [True, False])
def test_table_names_the_algorithm_that_auto_takes(make_work, monkeypatch, direct):
    monkeypatch.setattr(convolutions, "HAS_DIRECT_KERNELS", direct)
    table = measure_layers(make_work("train"), repeats=1)
    assert table.at["encoder.0.conv1", "auto"] == ("torch" if direct else "ovseg")
    assert table.at["head", "auto"] == "torch"
    by_rule = table.attrs["milliseconds of all layers as auto takes them"]
    assert by_rule >= table.attrs["by the faster of each layer"] > 0


def test_what_the_rule_loses():
    table = pd.DataFrame(
        {
            "auto": ["torch", "torch", "ovseg", "torch"],
            "torch forward ms": [10.0, 10.0, 10.0, 1.0],
            "torch backward ms": [10.0, 20.0, 20.0, 1.0],
            # The second is as fast but for noise, the last has torch's algorithm only.
            "ovseg forward ms": [5.0, 10.0, 5.0, None],
            "ovseg backward ms": [5.0, 19.0, 10.0, None],
        }
    )
    layers._judge_rule(table)
    assert list(table["auto loses ms"]) == [10.0, 0.0, 0.0, 0.0]
    assert list(table.attrs.values()) == [20 + 30 + 15 + 2, 10 + 29 + 15 + 2]
