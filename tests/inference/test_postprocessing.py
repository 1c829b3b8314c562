"""Flips, threshold and clean-up: hand-worked labels, and one post-processing for evaluate and infer alike."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ovseg.cli.main import main
from ovseg.core.checkpoints import checkpoint_digest
from ovseg.core.errors import InputError
from ovseg.data.geometry import fit_box
from ovseg.data.pairs import read_image
from ovseg.evaluation.evaluate import Evaluation
from ovseg.inference.postprocessing import (
    Postprocessing,
    average_flips,
    mean_logits,
    read_postprocessing,
    to_dict,
)
from ovseg.inference.predictor import Predictor
from ovseg.metrics import predict

PICTURE = np.array(  # a ring of 8 with a hole, two pixels that touch at a corner, one alone
    [
        [1, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 1, 0],
        [1, 1, 1, 0, 0, 1],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
    ]
)


def labels(
    postprocessing: Postprocessing, picture: np.ndarray = PICTURE, pixels: int | None = None
) -> np.ndarray:
    """Lesion of probability 0.6 where the picture is 1, 0.3 elsewhere."""
    return postprocessing.labels(np.where(picture, 0.6, 0.3).astype(np.float32)[None], pixels)


def changed(*cells: tuple[int, int]) -> np.ndarray:
    """The picture with these cells turned over."""
    picture = PICTURE.copy()
    for cell in cells:
        picture[cell] = 1 - picture[cell]
    return picture


HOLE, PAIR, DOT = (1, 1), [(1, 4), (2, 5)], (4, 3)


@pytest.mark.parametrize(
    ("postprocessing", "expected"),
    [
        (Postprocessing(), PICTURE),
        (Postprocessing(threshold=0.25), np.ones_like(PICTURE)),
        (Postprocessing(threshold=0.7), np.zeros_like(PICTURE)),
        (Postprocessing(fill_holes=True), changed(HOLE)),
        (Postprocessing(keep_largest=True), changed(*PAIR, DOT)),
        (Postprocessing(min_area=2 / 30), changed(DOT)),
        (Postprocessing(min_area=2.5 / 30), changed(*PAIR, DOT)),
        (Postprocessing(min_area=8.5 / 30), np.zeros_like(PICTURE)),
        (Postprocessing(min_area=8.5 / 30, fill_holes=True), changed(HOLE, *PAIR, DOT)),
        (Postprocessing(threshold=0.7, keep_largest=True, fill_holes=True), np.zeros_like(PICTURE)),
    ],
)
def test_labels_by_hand(postprocessing, expected):
    found = labels(postprocessing)
    assert found.dtype == np.uint8 and np.array_equal(found, expected)


def test_share_is_of_the_picture_and_not_of_its_square():
    assert np.array_equal(labels(Postprocessing(min_area=0.1), pixels=20), changed(DOT))
    assert np.array_equal(labels(Postprocessing(min_area=0.1)), changed(*PAIR, DOT))


def test_bay_and_diagonal_gap_are_no_holes():
    bay = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 1]])
    assert np.array_equal(labels(Postprocessing(fill_holes=True), bay), bay)
    enclosed = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])  # 8 neighbours make a ring of it
    assert labels(Postprocessing(fill_holes=True), enclosed)[1, 1] == 1


def test_hole_in_a_category_gets_the_most_probable_one():
    probs = np.zeros((3, 3, 3), np.float32)
    probs[1] = 0.9
    probs[:, 1, 1] = 0.5, 0.2, 0.3
    assert Postprocessing().labels(probs)[1, 1] == 0
    filled = Postprocessing(fill_holes=True).labels(probs)
    assert filled[1, 1] == 2 and (np.delete(filled, 4) == 1).all()


def test_plain_postprocessing_is_the_prediction_of_the_scores():
    logits = torch.randn(3, 1, 16, 16)
    found = [Postprocessing().labels(probs) for probs in logits.sigmoid().numpy()]
    assert np.array_equal(found, predict(logits)[:, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flips": ["diagonal"]}, "Unknown flip 'diagonal'. Choose one of: horizontal, vertical"),
        ({"threshold": 0}, "threshold of post-processing is 0, expected a number within"),
        ({"threshold": "high"}, "threshold of post-processing is 'high'"),
        ({"min_area": 1.5}, "min_area of post-processing is 1.5, expected a number within 0..1"),
        ({"keep_largest": 1}, "keep_largest of post-processing is 1, expected true or false"),
    ],
)
def test_bad_postprocessing_is_an_error(arguments, message):
    with pytest.raises(InputError, match=message):
        Postprocessing(**arguments)


def test_postprocessing_says_what_it_changes():
    assert str(Postprocessing()) == "threshold 0.5"
    every = Postprocessing(("horizontal", "vertical"), 0.4, True, 0.002, True)
    expected = (
        "flips horizontal and vertical, threshold 0.4, holes filled, components of 0.2 % and more"
    )
    assert str(every) == f"{expected}, largest component" and len(every.changes) == 5
    assert Postprocessing(**json.loads(json.dumps(to_dict(every)))) == every


@pytest.mark.parametrize("classes", [1, 3])
def test_mean_of_logits_has_the_mean_of_probabilities(classes):
    logits = [torch.randn(2, classes, 4, 5) for _ in range(3)]
    activate = torch.sigmoid if classes == 1 else lambda x: x.softmax(1)
    expected = torch.stack([activate(entry) for entry in logits]).mean(0)
    assert torch.allclose(activate(mean_logits(logits)), expected, atol=1e-6)
    assert mean_logits(logits[:1]) is logits[0]


def test_mean_of_logits_is_exact_where_probabilities_are_one():
    ends = mean_logits([torch.full((1, 1, 1, 1), 60.0), torch.full((1, 1, 1, 1), 70.0)])
    assert ends.item() == pytest.approx(60 + math.log(2), abs=1e-3)


def test_flips_are_those_made_by_hand():
    weight = torch.rand(1, 3, 3, 3)

    def network(image):
        return torch.nn.functional.conv2d(image.float() / 255, weight - 0.5, padding=1)

    image = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8)
    plain, mirrored = network(image).sigmoid(), network(image.flip(3)).sigmoid().flip(3)
    upside_down, turned = (
        network(image.flip(2)).sigmoid().flip(2),
        network(image.flip(2, 3)).sigmoid().flip(2, 3),
    )
    assert not torch.allclose(plain, mirrored, atol=1e-3)
    for flips, views in [
        ((), [plain]),
        (("horizontal",), [plain, mirrored]),
        (("vertical",), [plain, upside_down]),
        (("horizontal", "vertical"), [plain, mirrored, upside_down, turned]),
    ]:
        found = average_flips(network, image, flips).sigmoid()
        assert torch.allclose(found, torch.stack(views).mean(0), atol=1e-6)


CHOSEN = Postprocessing(("horizontal", "vertical"), 0.3, keep_largest=True, fill_holes=True)


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    """A run that has CHOSEN as its post-processing. Not to be changed."""
    folder = make_run(tmp_path_factory.mktemp("run"))
    write_postprocessing(folder, CHOSEN)
    return folder


def write_postprocessing(run, postprocessing: Postprocessing, digest: str | None = None) -> None:
    digest = digest or checkpoint_digest(run / "checkpoints" / "last.ckpt")
    content = {"postprocessing": to_dict(postprocessing), "checkpoint_sha256": digest}
    (run / "postprocessing.json").write_text(json.dumps(content))


def evaluate(run, output, *more: str) -> int:
    return main(["evaluate", "--run", str(run), "--output", str(output), "--device", "cpu", *more])


def infer(run, images, output, *more: str) -> int:
    where = ["--run", str(run), "--images", str(images), "--output", str(output), "--device", "cpu"]
    return main(["infer", *where, *more])


def read(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture) > 0


@pytest.mark.parametrize("more", [(), ("--no-postprocessing",)])
def test_evaluate_scores_the_masks_that_infer_writes(run, phantom_root, tmp_path, capsys, more):
    assert evaluate(run, tmp_path / "out", *more) == 0
    assert infer(run, phantom_root / "test" / "images", tmp_path / "masks", *more) == 0
    said = (
        "flips horizontal and vertical, threshold 0.3, holes filled, largest component"
        in capsys.readouterr().out
    )
    assert said is not bool(more)
    table = pd.read_csv(tmp_path / "out" / "per_image.csv").set_index("stem")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["postprocessing"] == to_dict(Postprocessing() if more else CHOSEN)
    assert summary["postprocessing_file"] == (None if more else "postprocessing.json")
    assert summary["threshold"] == (0.5 if more else 0.3)
    for stem, row in table.iterrows():
        pred = read(tmp_path / "masks" / f"{stem}.png")
        mask = read(phantom_root / "test" / "masks" / f"{stem}.png")
        assert (
            row["pred_pixels_original"] == pred.sum()
            and row["hit_pixels_original"] == (pred & mask).sum()
        )
        assert row["dice_original"] == pytest.approx(
            2 * (pred & mask).sum() / (pred.sum() + mask.sum())
        )


def test_infer_follows_the_postprocessing_by_hand(run, phantom_root):
    image = read_image(next((phantom_root / "test" / "images").iterdir()))
    plain = Predictor.from_run(run, "cpu", postprocessing=False)
    views = [
        plain.predict([np.ascontiguousarray(turn(image))])[0]
        for turn in (np.array, np.fliplr, np.flipud)
    ]
    views = [views[0], np.fliplr(views[1]), np.flipud(views[2])]
    rotated = plain.predict([np.ascontiguousarray(np.rot90(image, 2))])[0]
    expected = np.mean([*views, np.rot90(rotated, 2)], axis=0, dtype=np.float32)
    prediction = Predictor.from_run(run, "cpu").segment([image])[0]
    assert np.allclose(prediction.probs, expected, atol=1e-4)
    assert np.array_equal(prediction.labels, CHOSEN.labels(prediction.probs[None]))
    assert 0 < prediction.labels.sum() < (plain.segment([image])[0].probs > 0.3).sum()


def test_scores_at_the_networks_size_follow_the_postprocessing(run):
    with_postprocessing, plain = (
        Evaluation(run, "test", device="cpu", postprocessing=d) for d in (True, False)
    )
    stems = [pair.stem for pair in plain.datamodule.pairs("test")]
    logits = torch.full((3, 1, 32, 32), -2.0)
    logits[:, :, 4:8, 4:8] = -0.5  # probability 0.38
    logits[:, :, 20, 20] = 3
    assert with_postprocessing.postprocess(stems, logits)[0].sum((1, 2, 3)).tolist() == [16] * 3
    assert plain.postprocess(stems, logits)[0].sum((1, 2, 3)).tolist() == [1] * 3
    table, summary = with_postprocessing.run()
    assert summary["scores"]["dice"]["mean"] == pytest.approx(table["dice"].mean())
    hit, both = table["hit_pixels"].sum(), (table["lesion_pixels"] + table["pred_pixels"]).sum()
    assert summary["scores"]["iou_pooled"] == pytest.approx(hit / (both - hit), abs=1e-6)
    assert not plain.run()[0]["pred_pixels"].equals(table["pred_pixels"])


def test_share_at_the_networks_size_is_of_the_pictures_box(make_run, tmp_path, save_png):
    for kind in ("images", "masks"):
        save_png(
            tmp_path / "data" / "test" / kind / "a.png",
            np.zeros((16, 64, 3)[: 3 - (kind == "masks")], np.uint8),
        )
    run = make_run(tmp_path / "run")
    write_postprocessing(run, Postprocessing(min_area=17 / 256))
    evaluation = Evaluation(run, "test", tmp_path / "data", device="cpu")
    assert fit_box(16, 64, 32, "letterbox").height == 8
    logits = torch.full((1, 1, 32, 32), -5.0)
    logits[:, :, 14:18, 10:14] = 5
    assert evaluation.postprocess(["a"], logits)[0].sum() == 0
    logits[:, :, 13, 10] = 5
    assert evaluation.postprocess(["a"], logits)[0].sum() == 17


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_engine_turns_pictures_round(run, phantom_root, tmp_path, engine):
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    pytest.importorskip(engine, reason="needs the extra of this engine")
    images = [read_image(path) for path in sorted((phantom_root / "test" / "images").iterdir())]
    ours, theirs = (Predictor.from_run(run, "cpu") for _ in range(2))
    theirs.engine = engine
    for a, b in zip(ours.predict(images), theirs.predict(images), strict=True):
        assert np.abs(a - b).max() < 1e-4


def test_another_checkpoints_postprocessing_is_refused_with_the_remedy(
    run, make_run, phantom_root, tmp_path, capsys
):
    other = make_run(tmp_path / "other", seed=1)
    write_postprocessing(other, CHOSEN, checkpoint_digest(run / "checkpoints" / "last.ckpt"))
    commands = [
        lambda: evaluate(other, tmp_path / "out"),
        lambda: infer(other, phantom_root / "test" / "images", tmp_path / "masks"),
    ]
    for command in commands:
        assert command() == 2
        error = capsys.readouterr().err
        assert "was chosen for another checkpoint" in error
        assert f"ovseg postprocess --run {other}, or add --no-postprocessing" in error
    assert evaluate(other, tmp_path / "out", "--no-postprocessing") == 0


def test_checkpoint_alone_has_no_postprocessing(run):
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert read_postprocessing(checkpoint, checkpoint_digest(checkpoint), 1) is None
    assert Predictor.from_run(checkpoint, "cpu").postprocessing == Postprocessing()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not what ovseg postprocess writes .JSONDecodeError."),
        ("[]", "is not what ovseg postprocess writes .TypeError."),
        (
            '{"postprocessing": {"speed": 1}, "checkpoint_sha256": "1"}',
            "is not what ovseg postprocess writes",
        ),
        (
            '{"postprocessing": {"min_area": 2}, "checkpoint_sha256": "1"}',
            "min_area of post-processing is 2",
        ),
    ],
)
def test_damaged_postprocessing_is_an_error(tmp_path, text, message):
    (tmp_path / "postprocessing.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_postprocessing(tmp_path, "1", 1)


def test_threshold_for_categories_is_an_error(tmp_path):
    (tmp_path / "postprocessing.json").write_text(
        '{"postprocessing": {"threshold": 0.4}, "checkpoint_sha256": "1"}'
    )
    assert read_postprocessing(tmp_path, "1", 1) == Postprocessing(threshold=0.4)
    with pytest.raises(InputError, match="has threshold 0.4, but 5 classes have none"):
        read_postprocessing(tmp_path, "1", 5)
