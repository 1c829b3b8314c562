from ovseg.benchmark.layers import list_layers, measure_layers


def test_layers_are_measured_in_order_and_once_a_kind(make_work):
    algorithms = ("torch", "torch channels_last", "ovseg")
    table = measure_layers(make_work("train"), repeats=1, algorithms=algorithms)
    assert list(table.index) == [name for name, _, _ in list_layers(make_work())]
    assert table.index[0] == "encoder.0.conv1"
    assert table["what"].iloc[0] == "conv 3->2, 9x9 dilation 3, 32x32"
    assert len(table) == 8
    assert table["what"].nunique() == 7
    milliseconds = table.filter(like=" ms")
    first, second = milliseconds[table["what"].duplicated(keep=False)].to_numpy()
    assert (first == second).all()  # measured once


def test_head_has_torchs_algorithm_only(make_work):
    table = measure_layers(make_work("train"), repeats=1)
    milliseconds = table.filter(like=" ms")
    assert (milliseconds.drop(index="head") > 0).all(axis=None)
    missing = milliseconds.columns[milliseconds.loc["head"].isna()]
    assert list(missing) == ["ovseg forward ms", "ovseg backward ms"]


def test_flops_of_a_layer_are_those_of_its_direct_algorithm(make_work):
    table = measure_layers(make_work("train"), repeats=1, algorithms=())
    expected = 2 * 32 * 32 * 9 * 9 * 3 * 2
    assert table["GFLOP"].iloc[0] * 1e9 == expected
