"""Tables as Markdown and as figures."""

import json

import pandas as pd
import pytest

from ovseg.benchmark.report import to_markdown, write_benchmark

MACHINE = {"system": "Linux", "versions": {"torch": "2.14"}, "work": {"mode": "infer"}}


def peers_table() -> pd.DataFrame:
    row = {"peer": "ovseg", "median s": 0.2, "least s": 0.1, "most s": 0.4, "peak MiB": 900.0}
    table = pd.DataFrame([row]).set_index("peer")
    table.attrs["GFLOP a step"] = 1.5
    return table


def scaling_table() -> pd.DataFrame:
    point = {"peer": "ovseg", "seconds": 0.1, "ns a pixel": 2.0, "peak MiB": 900.0}
    return pd.DataFrame(
        [
            {"variable": "image size", "value": 128, **point},
            {"variable": "image size", "value": 256, **point},
            {"variable": "threads", "value": 1, **point},
        ]
    )


def layers_table() -> pd.DataFrame:
    row = {"layer": "head", "what": "conv 2->1, 1x1, 32x32", "torch forward ms": 0.1}
    return pd.DataFrame([row]).set_index("layer")


def loading_table() -> pd.DataFrame:
    row = {"size": 64, "pipeline": "none", "loader": "cache", "workers": 0, "batch_size": 8}
    return pd.DataFrame([{**row, "images_per_second": 50.0, "lowest": 45.0, "highest": 51.0}])


@pytest.mark.parametrize(
    ("name", "make_table"),
    [
        ("infer", peers_table),
        ("scaling", scaling_table),
        ("layers", layers_table),
        ("data", loading_table),
    ],
)
def test_every_kind_of_table_becomes_a_figure(tmp_path, name, make_table):
    write_benchmark(tmp_path / "out", {name: make_table()}, MACHINE, overwrite=False)
    assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000


def test_files_hold_tables_facts_and_machine(tmp_path):
    write_benchmark(tmp_path / "out", {"infer": peers_table()}, MACHINE, overwrite=False)
    content = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert content["machine"] == MACHINE
    assert content["infer"]["GFLOP a step"] == 1.5
    assert content["infer"]["rows"][0]["peer"] == "ovseg"
    text = (tmp_path / "out" / "benchmark.md").read_text()
    assert "- versions: torch 2.14\n- work: mode infer" in text
    assert "## infer\n\nGFLOP a step: 1.5. \n\n| peer " in text


def test_markdown_leaves_out_what_was_not_measured():
    row = {"peer": "a", "x": float("nan"), "y": 0.12345, "z": 12345.6}
    text = to_markdown(pd.DataFrame([row]).set_index("peer"))
    cells = [cell.strip() for cell in text.splitlines()[-1].split("|")]
    assert cells == ["", "a", "", "0.123", "12346", ""]


def test_index_without_a_name_is_no_column():
    assert to_markdown(loading_table()).splitlines()[0].split()[1] == "size"
