"""The files of an audit, its page and what the command prints."""

import json
import os
import re

import cv2
import pytest

from ovseg.audit.report import report_audit
from ovseg.core.errors import InputError


def test_report_counts_everything(tree, copy_pair, read_png, save_png):
    copy_pair("train/phantom_0", "test/copied", lambda image: image[::-1])
    path = tree / "valid/images/phantom_7.png"
    save_png(path, cv2.circle(read_png(path), (48, 60), 9, (220, 30, 20), -1))
    summary = report_audit(tree)
    output = tree / "audit"

    assert json.loads((output / "audit.json").read_text()) == summary
    assert not summary["passed"]
    splits = summary["splits"]
    assert splits["train"]["images"] == 7
    assert splits["all"]["images"] == 11
    assert splits["valid"]["doppler"] == splits["all"]["doppler"] == 1
    assert splits["all"]["sizes"] == {"96 x 96": 11}
    assert summary["copies"][0]["first"] == "train/images/phantom_0.png"
    assert summary["copies"][0]["across_splits"]

    names = {path.name for path in output.iterdir()}
    assert names == {
        ".ovseg_files",
        "audit.html",
        "audit.json",
        "Statistics.png",
        "lesion.png",
        "brightness.png",
        "leakage.jpg",
        "doppler.jpg",
        "samples_train.jpg",
        "samples_valid.jpg",
        "samples_test.jpg",
    }


def test_page_needs_nothing_beside_it_and_escapes_names(tree, copy_pair):
    copy_pair("train/phantom_0", "test/a<b>")
    report_audit(tree)
    page = (tree / "audit" / "audit.html").read_text()
    assert "http" not in page
    assert "a&lt;b&gt;" in page
    assert "a<b>" not in page
    sources = re.findall(r'(?:src|href)="(?!#)([^"]{0,22})', page)
    assert len(sources) >= 7
    assert all(source.startswith("data:image/") for source in sources)


def test_page_says_how_phantoms_are_compared(phantom_root, tmp_path):
    report_audit(phantom_root, tmp_path / "out")
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "Images were compared by file contents and pixels only (phantoms)." in page


def test_command_exits_with_1_for_leaks_and_faults_and_prints_them(
    tree, tmp_path, copy_pair, capsys, run_command
):
    where = ("--data", tree, "--output", tmp_path / "out")
    assert run_command("audit_data", *where) == 0
    assert "PASSED" in capsys.readouterr().out

    copy_pair("train/phantom_0", "test/copied")
    assert run_command("audit_data", *where, "--overwrite") == 1
    assert "same pixels: 1 pairs across splits" in capsys.readouterr().out

    (tree / "test/images/copied.png").unlink()
    assert run_command("audit_data", *where, "--overwrite") == 1
    assert "mask without image: 1 (test/masks/copied.png)" in capsys.readouterr().out


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"There is no folder .*gone. Check the path"):
        report_audit(tmp_path / "gone")


def test_earlier_audit_is_not_replaced_unasked(tree):
    report_audit(tree)
    with pytest.raises(InputError, match="add --overwrite"):
        report_audit(tree)


def test_output_that_would_replace_the_tree_is_an_error(tree):
    with pytest.raises(InputError, match="lies in the output folder"):
        report_audit(tree, tree, overwrite=True)


def test_hostile_names_are_escaped_on_the_page_and_in_the_terminal(tree, run_command, capfd):
    names = [
        os.fsdecode(b"\xc2\xd1"),
        "x[red]",
        "line\nbreak",
        "\x1b[31mred",
        "<script>alert",
        "=1+1",
    ]
    for name in names:
        (tree / "train" / "images" / f"{name}.png").touch()
    assert run_command("audit_data", "--data", tree, "--output", tree.parent / "out") == 1
    page = (tree.parent / "out" / "audit.html").read_text()
    for shown in (r"\udcc2\udcd1", "x[red]", r"line\nbreak", r"\x1b[31mred", "&lt;script&gt;alert"):
        assert f"train/images/{shown}.png" in page
    out, err = capfd.readouterr()
    assert "\x1b" not in out + err
    assert "<script>alert" not in page


@pytest.mark.parametrize("name", ["[red]", "[", "a$b_{$", "卵巢"])
def test_dataset_of_a_hostile_name_is_audited(tree, run_command, name):
    root = tree.rename(tree.with_name(name))
    assert run_command("audit_data", "--data", root, "--output", root.with_name("out")) == 0


def test_what_mends_a_finding_is_printed_and_on_the_page(
    tree, tmp_path, copy_pair, read_png, save_png, run_command, capsys
):
    copy_pair("train/phantom_0", "test/copied")
    for path in tree.glob("*/masks/*.png"):
        save_png(path, 255 - read_png(path))
    (tree / "train" / "masks" / "phantom_1.png").unlink()
    assert run_command("audit_data", "--data", tree, "--output", tmp_path / "out") == 1
    printed = capsys.readouterr().out
    command = f"ovseg prepare_data --source {tree} --output {tree}_prepared"
    for remedy in (
        f"if the lesion is drawn in black: {command} --invert_masks",
        f"add the masks, or: {command} --unmatched skip",
        f"to mend it: {command} --split groups",
    ):
        assert remedy in printed
    page = (tmp_path / "out" / "audit.html").read_text()
    assert f"<p>To mend it: if the lesion is drawn in black: {command} --invert_masks" in page
    assert f"<p>To mend it: {command} --split groups</p>" in page


def test_prepared_dataset_is_mended_from_its_originals(tree, run_command, tmp_path, capsys):
    (tree / "manifest.json").write_text('{"made_by": "prepare_data", "size": 96}')
    (tree / "train" / "masks" / "phantom_1.png").unlink()
    run_command("audit_data", "--data", tree, "--output", tmp_path / "out")
    command = f"ovseg prepare_data --source ORIGINALS --output {tree} --overwrite"
    assert f"add the masks, or: {command} --unmatched skip" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["train/audit", "test/images"])
def test_output_among_the_images_is_an_error(tree, place):
    with pytest.raises(InputError, match=r"The output folder .* lies in .*, which is read"):
        report_audit(tree, tree / place)
