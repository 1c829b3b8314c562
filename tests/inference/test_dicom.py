"""`ovseg infer` on DICOM files: masks, areas, DICOM-SEG, and what is kept out of them."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless, UltrasoundMultiFrameImageStorage

from dicom_files import IDENTIFYING, MARKS, compress, make_dicom, make_region, save_dicom
from ovseg.core.checkpoints import checkpoint_digest, find_checkpoints
from ovseg.core.errors import InputError, WriteError
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.inference import dicom_seg
from ovseg.inference.folder import infer_folder
from ovseg.inference.postprocessing import Postprocessing
from ovseg.inference.predictor import Predictor

WHOLE = make_region((0, 63, 0, 63), (0.02, 0.01))  # of a phantom of 64 x 64


@pytest.fixture(scope="module")
def cine() -> np.ndarray:
    """Five different frames, RGB, 64 x 64."""
    return np.stack([make_phantom(seed, 64)[0] for seed in range(5)])


@pytest.fixture
def folder(tmp_path, cine) -> Path:
    """A picture without a suffix, a cine, and a picture that is no DICOM."""
    folder = tmp_path / "in"
    save_dicom(folder / "one", make_dicom(cine[0], SequenceOfUltrasoundRegions=[WHOLE]))
    save_dicom(folder / "film.dcm", compress(make_dicom(cine), JPEG2000Lossless))
    Image.fromarray(cine[0]).save(folder / "plain.png")
    return folder


@pytest.fixture
def infer(run, tmp_path) -> Callable[..., tuple[int, list[str]]]:
    """A function that runs `infer_folder` into the folder `out`."""

    def call(images: Path, run: Path = run, **options: object) -> tuple[int, list[str]]:
        return infer_folder(run, images, tmp_path / "out", device="cpu", **options)

    return call


def test_dicom_is_predicted_as_the_picture_in_it(run, folder, cine):
    predictor = Predictor.load(run, "cpu")
    found = predictor.predict(folder / "one")
    assert np.array_equal(found.probs, predictor.predict(cine[0]).probs)


def test_every_frame_of_a_cine_gets_the_mask_of_its_picture(
    run, infer, folder, tmp_path, cine, read_png, capsys
):
    assert infer(folder, batch_size=3) == (7, [])
    predictions = Predictor.load(run, "cpu").predict(cine)
    for number, prediction in enumerate(predictions, start=1):
        mask = read_png(tmp_path / "out" / f"film_{number:04d}.png")
        assert np.array_equal(mask, prediction.labels * 255)
    first = read_png(tmp_path / "out" / "film_0001.png")
    for name in ("one.png", "plain.png"):
        assert np.array_equal(read_png(tmp_path / "out" / name), first)
    assert "2 files are DICOM. Names and dates may be burned in" in capsys.readouterr().err


def test_frame_step_leaves_frames_out(infer, folder, tmp_path):
    assert infer(folder / "film.dcm", frame_step=2) == (3, [])
    masks = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert masks == ["film_0001.png", "film_0003.png", "film_0005.png"]


def test_files_that_are_refused_are_named_and_the_others_are_written(
    run, folder, tmp_path, cine, run_command, capsys
):
    report = make_dicom(cine[0])
    del report.Rows
    save_dicom(folder / "report.dcm", report)
    content = (folder / "film.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(content[:-500])
    (folder / "sealed.dcm").write_bytes(bytes(500))
    command = ["infer", "--run", run, "--images", folder, "--output", tmp_path / "out"]
    assert run_command(*command, "--device", "cpu") == 1
    failed = [line for line in capsys.readouterr().err.splitlines() if "failed:" in line]
    assert len(failed) == 3
    assert "cut.dcm: frame 5 of 5 cannot be decoded" in failed[0]
    assert "report.dcm is DICOM without a picture" in failed[1]
    assert "sealed.dcm does not begin as a DICOM file does" in failed[2]
    assert len(list((tmp_path / "out").glob("*.png"))) == 7


def test_missing_package_is_a_failure_of_each_dicom_file(
    infer, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.delitem(sys.modules, "ovseg.data.dicom", raising=False)
    monkeypatch.delattr("ovseg.data.dicom", raising=False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    count, failures = infer(folder)
    assert count == 1
    assert len(failures) == 2
    assert failures[0].endswith("film.dcm is DICOM, which needs pip install 'ovseg[dicom]'.")


# Areas


def test_areas_are_those_of_the_masks_in_square_millimetres(infer, folder, tmp_path, read_png):
    infer(folder)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", index_col="mask")
    pixels = (read_png(tmp_path / "out" / "one.png") > 0).sum()
    row = table.loc["one.png"]
    assert row["area_pixels"] == pixels > 0
    assert row["area_mm2"] == pytest.approx(pixels * 0.2 * 0.1)
    assert (row["pixel_height_mm"], row["pixel_width_mm"]) == (0.2, 0.1)
    assert row["calibration"] == "region"
    assert np.isnan(table.loc["film_0001.png", "area_mm2"])
    assert table.loc["film_0001.png", "calibration"] == "unknown: the file is not calibrated"
    columns = ["frame", "area_mm2", "pixel_height_mm", "pixel_width_mm", "calibration"]
    assert table.loc["plain.png", columns].isna().all()


def test_frames_of_a_cine_are_told_apart(
    infer, own_run, folder, tmp_path, capsys, write_postprocessing
):
    write_postprocessing(own_run, Postprocessing(flag_confidence=1.0))  # flags all
    infer(folder / "film.dcm", run=own_run, frame_step=4)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert list(table["frame"]) == [1, 5]
    text = f"look at {folder}/film.dcm (frame 1), {folder}/film.dcm (frame 5)."
    assert text in capsys.readouterr().out


# DICOM-SEG


def test_dicomseg_of_a_picture_holds_its_mask_bit_for_bit(run, infer, folder, tmp_path, read_png):
    assert infer(folder, formats=["dicomseg"]) == (7, [])
    mask = read_png(tmp_path / "out" / "one.png") > 0
    path = tmp_path / "out" / "dicomseg" / "one.dcm"

    by_pydicom = pydicom.dcmread(path)
    assert np.array_equal(by_pydicom.pixel_array, mask)
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID"):
        assert by_pydicom[keyword].value == IDENTIFYING[keyword]
    assert by_pydicom.Modality == "SEG"
    [series] = by_pydicom.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == IDENTIFYING["SeriesInstanceUID"]
    [instance] = series.ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == IDENTIFYING["SOPInstanceUID"]

    by_highdicom = highdicom.seg.segread(path)
    uid = IDENTIFYING["SOPInstanceUID"]
    found = by_highdicom.get_pixels_by_source_instance([uid], ignore_spatial_locations=True)
    assert np.array_equal(found[0, ..., 0], mask)
    segment = by_highdicom.get_segment_description(1)
    assert segment.segment_label == "ovarian tumour"
    assert segment.segmented_property_type.value == "108369006"
    assert segment.segmented_property_category.value == "49755003"
    assert segment.anatomic_regions[0].value == "15497006"
    [algorithm] = segment.algorithm_identification
    assert algorithm.AlgorithmName == "ovseg"
    digest = checkpoint_digest(*find_checkpoints(run))
    assert algorithm.AlgorithmParameters == f"checkpoint_sha256={digest}"


def test_dicomseg_of_a_cine_is_a_file_for_each_frame(infer, folder, tmp_path, read_png):
    infer(folder / "film.dcm", formats=["dicomseg"], frame_step=2)
    paths = sorted((tmp_path / "out" / "dicomseg").iterdir())
    assert [path.name for path in paths] == ["film_0001.dcm", "film_0003.dcm", "film_0005.dcm"]
    source = pydicom.dcmread(folder / "film.dcm", stop_before_pixels=True)
    series = set()
    for number, path in zip((1, 3, 5), paths, strict=True):
        seg = pydicom.dcmread(path)
        series.add(seg.SeriesInstanceUID)
        mask = read_png(tmp_path / "out" / f"{path.stem}.png") > 0
        assert np.array_equal(seg.pixel_array, mask)
        [group] = seg.PerFrameFunctionalGroupsSequence
        [frame] = group.DerivationImageSequence[0].SourceImageSequence
        [instance] = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert frame.ReferencedFrameNumber == number
        for reference in (frame, instance):
            assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
            assert reference.ReferencedSOPClassUID == source.SOPClassUID
        by_frame = highdicom.seg.segread(path).get_pixels_by_source_frame(
            source.SOPInstanceUID, [number], ignore_spatial_locations=True
        )
        assert np.array_equal(by_frame[0, ..., 0], mask)
    assert len(series) == 1
    assert series != {source.SeriesInstanceUID}


def test_cine_of_one_frame_gets_a_dicomseg(infer, tmp_path, cine):
    dataset = make_dicom(cine[0], NumberOfFrames=1, SOPClassUID=UltrasoundMultiFrameImageStorage)
    path = save_dicom(tmp_path / "one", dataset)
    assert infer(path, formats=["dicomseg"]) == (1, [])
    seg = pydicom.dcmread(tmp_path / "out" / "dicomseg" / "one.dcm")
    assert seg.SourceImageSequence[0].ReferencedSOPClassUID == UltrasoundMultiFrameImageStorage


def test_dicomseg_of_categories_has_a_segment_for_each(
    infer, category_run, folder, tmp_path, read_png
):
    infer(folder / "one", run=category_run, formats=["dicomseg"])
    seg = highdicom.seg.segread(tmp_path / "out" / "dicomseg" / "one.dcm")
    labels = [seg.get_segment_description(number).segment_label for number in (1, 2, 3, 4)]
    assert labels == ["cyst", "haze", "solid", "mixed"]
    assert seg.get_segment_description(1).segmented_property_type.value == "52988006"
    found = seg.get_pixels_by_source_instance(
        [IDENTIFYING["SOPInstanceUID"]], combine_segments=True, ignore_spatial_locations=True
    )
    assert np.array_equal(found[0], read_png(tmp_path / "out" / "one.png"))


def test_empty_mask_is_a_dicomseg_too(infer, run, tmp_path, write_postprocessing):
    strict = shutil.copytree(run, tmp_path / "strict")
    write_postprocessing(strict, Postprocessing(threshold=0.999))
    path = save_dicom(tmp_path / "black", make_dicom(np.zeros((64, 64, 3), np.uint8)))
    infer(path, run=strict, formats=["dicomseg"])
    seg = pydicom.dcmread(tmp_path / "out" / "dicomseg" / "black.dcm")
    assert seg.pixel_array.shape == (64, 64)
    assert not seg.pixel_array.any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"StudyInstanceUID": None}, "because it has no StudyInstanceUID"),
        ({"SharedFunctionalGroupsSequence": []}, "because it is an enhanced multi-frame image"),
        ({"SOPClassUID": "1.2.3.98765434"}, "no DICOM-SEG is written for its header"),
    ],
)
def test_source_that_no_dicomseg_can_belong_to_is_a_failure(infer, tmp_path, cine, values, message):
    dataset = make_dicom(cine[0], **values)
    path = save_dicom(tmp_path / "one", dataset)
    count, [failure] = infer(path, formats=["dicomseg"])
    assert count == 1
    assert message in failure


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"formats": ["dicomseg"]},
            "dicomseg needs DICOM files, but none of the 4 pictures",
        ),
        ({"formats": ["png", "nifti"]}, "Unknown format 'nifti'. Choose one of: coco, contours"),
        ({"frame_step": 0}, "frame_step is 0, expected at least 1"),
    ],
)
def test_option_that_can_not_be_used_is_an_error(infer, images, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        infer(images, **options)
    assert not (tmp_path / "out").exists()


def test_missing_highdicom_is_an_error_before_work_starts(infer, folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "ovseg.inference.dicom_seg", raising=False)
    monkeypatch.delattr("ovseg.inference.dicom_seg", raising=False)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match="needs highdicom: pip install 'ovseg.dicom.'"):
        infer(folder, formats=["dicomseg"])


def test_interrupted_call_continues_and_keeps_all_areas(
    infer, folder, tmp_path, monkeypatch, capsys
):
    def fail(*arguments):
        raise WriteError("Cannot write one.dcm: No space left on device.")

    monkeypatch.setattr(dicom_seg, "write_segs", fail)
    with pytest.raises(WriteError, match="one.dcm"):
        infer(folder, formats=["dicomseg"])
    monkeypatch.undo()
    assert infer(folder, formats=["dicomseg"]) == (7, [])
    assert "Continuing: 7 of 7 masks were written before." in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "out" / "predictions.csv")["calibration"].notna().sum() == 6
    assert len(list((tmp_path / "out" / "dicomseg").iterdir())) == 6


# Privacy


def test_patient_is_named_in_no_output_but_the_dicomseg(run, tmp_path, cine, run_command, capfd):
    source = tmp_path / "in"
    # A name of one word is one that highdicom warns of.
    odd = make_dicom(cine[0], PatientName="MARKEDNAME", SequenceOfUltrasoundRegions=[WHOLE])
    odd.add_new(0x00091001, "LO", "MARKED-PRIVATE")
    save_dicom(source / "one.dcm", odd)
    content = save_dicom(source / "two.dcm", make_dicom(cine)).read_bytes()
    for name, part in (("cut", 0.9), ("half", 0.5), ("header", 0.01)):
        (source / f"{name}.dcm").write_bytes(content[: int(len(content) * part)])
    # Headers in which a length, a kind of value or a number is wrong.
    for name, old, new in (
        ("length", b"PN\x0c\x00", b"PN\xff\x7f"),
        ("kind", b"MARKED-OTHER", b"MARKED\x00\x1b[31"),
        ("number", b"\x28\x00\x08\x00IS\x02\x005 ", b"\x28\x00\x08\x00IS\x02\x00MA"),
    ):
        assert old in content
        (source / f"{name}.dcm").write_bytes(content.replace(old, new))

    command = ["infer", "--run", run, "--images", source, "--output", tmp_path / "out"]
    code = run_command(*command, "--overlays", "--probabilities", "--format", "dicomseg")
    assert code == 1
    printed = capfd.readouterr()
    texts = {"standard output": printed.out, "standard error": printed.err}
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and path.suffix != ".dcm":
            texts[path.name] = f"{path.name} {path.read_bytes().decode('latin-1')}"
    assert len(texts) > 10
    found = [(name, mark) for name, text in texts.items() for mark in MARKS if mark in text]
    assert found == []
    assert "MARKED" in (tmp_path / "out" / "dicomseg" / "one.dcm").read_bytes().decode("latin-1")
