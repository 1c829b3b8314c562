"""What the endpoint answers, and each of its refusals, without a socket."""

import base64
import io
import itertools

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from dicom_files import compress, encode_dicom, make_dicom, make_region
from ovseg import predict_guided
from ovseg.core.checkpoints import checkpoint_digest, find_checkpoints
from ovseg.data.pictures import FORMATS
from ovseg.inference.postprocessing import Postprocessing
from ovseg.inference.predictor import Predictor
from ovseg.serve import decode, upload, worker
from ovseg.serve.answer import describe_model
from serving import BrightNetwork, draw_square, encode, make_predictor

ALL = "?mask=true&probabilities=true&picture=true"


def decode_png(text: str) -> np.ndarray:
    """A PNG in base64 as it is stored."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        assert picture.format == "PNG"
        return np.array(picture)


# Answers


def test_white_square_is_found(running):
    response = running.post(encode(draw_square()))
    assert response.status_code == 200
    answer = response.json()
    assert (answer["width"], answer["height"], answer["area"]) == (32, 32, 30)
    assert answer["area_percent"] == pytest.approx(100 * 30 / 1024)
    # 30 pixels of p = 1 / (1 + e^-10) and 994 of 1 - p: 2 * 30 p / (30 + 30 p + 994 (1 - p)).
    assert answer["confidence"] == pytest.approx(0.999226, abs=1e-6)
    [contour] = answer["contours"]
    assert sorted(contour) == [[10, 4], [10, 8], [15, 4], [15, 8]]
    assert answer["model"]["name"] == "bright/version_0"
    assert answer["model"]["threshold"] == 0.5


def test_pictures_are_in_the_answer_only_if_they_are_asked_for(running):
    content = encode(draw_square())
    plain = running.post(content).json()
    assert (plain["mask"], plain["probabilities"], plain["picture"]) == (None, None, None)
    assert running.post(content, "?mask=true").json()["picture"] is None


def test_mask_probabilities_and_picture_are_png(running):
    image = draw_square()
    image[20, 20] = 128  # its logit is 128 * 20 / 255 - 10, a probability of 0.5098
    answer = running.post(encode(image), ALL).json()
    mask = np.zeros((32, 32), np.uint8)
    mask[4:9, 10:16] = 255
    mask[20, 20] = 255
    assert np.array_equal(decode_png(answer["mask"]), mask)
    probs = decode_png(answer["probabilities"])
    assert (probs[5, 12], probs[20, 20], probs[0, 0]) == (255, 130, 0)
    assert np.array_equal(decode_png(answer["picture"]), image)


def test_answer_is_that_of_the_predictor_at_the_picture_own_size(running, bright):
    image = np.random.default_rng(0).integers(0, 256, (50, 41, 3), dtype=np.uint8)
    image[10:30, 5:30] |= 192
    prediction = bright.predict(image)
    assert 0 < prediction.labels.sum() < 50 * 41

    answer = running.post(encode(image), ALL).json()
    assert np.array_equal(decode_png(answer["mask"]), prediction.labels * 255)
    assert answer["area"] == prediction.labels.sum()
    rounded = np.round(prediction.probs * 255)
    assert np.array_equal(decode_png(answer["probabilities"]), rounded)


def test_lesion_is_outlined_between_its_ends(running, bright):
    image = draw_square()
    guided = predict_guided(bright, image, [((5, 20), (25, 28))])
    answer = running.post(encode(image), f"{ALL}&ends=5,20,25,28").json()
    assert np.array_equal(decode_png(answer["mask"]), guided.labels * 255)
    assert np.array_equal(decode_png(answer["picture"]), image)

    twice = predict_guided(bright, image, [((5, 20), (25, 28)), ((18, 20), (12, 28))])
    assert twice.area != guided.area
    answer = running.post(encode(image), "?ends=5,20,25,28&ends=18,20,12,28").json()
    assert answer["area"] == twice.area
    assert answer["ends"] == [[[5, 20], [25, 28]], [[18, 20], [12, 28]]]


def test_outline_between_ends_is_not_flagged(make_running):
    postprocessing = Postprocessing(flag_confidence=1.0)  # flags every picture
    running = make_running(make_predictor(BrightNetwork(), postprocessing=postprocessing))
    content = encode(draw_square())
    assert running.post(content).json()["flag"] is True
    assert running.post(content, "?ends=5,20,25,28").json()["flag"] is None


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "JPEG2000", "PPM", "WEBP"])
def test_kinds_of_pictures(running, kind):
    image = draw_square()
    answer = running.post(encode(image, kind), ALL).json()
    assert (answer["width"], answer["height"]) == (32, 32)
    assert answer["area"] > 20


def test_clean_up_of_the_run_is_honoured(make_running, cleaned):
    image = draw_square()
    image[20:22, 20:22] = 255
    running = make_running(cleaned)
    answer = running.post(encode(image)).json()
    assert (answer["area"], len(answer["contours"])) == (30, 1)
    assert answer["model"]["cleanup"] == ["largest component"]


def test_outline_has_no_holes_and_one_polygon_a_component(running):
    image = draw_square()
    image[6, 12] = 0
    image[20, 20] = 255
    answer = running.post(encode(image)).json()
    assert answer["area"] == 30
    assert sorted(len(contour) for contour in answer["contours"]) == [1, 4]


def test_nothing_found_is_an_answer_too(running):
    answer = running.post(encode(np.zeros((32, 32, 3), np.uint8))).json()
    assert (answer["area"], answer["contours"]) == (0, [])
    assert answer["confidence"] == pytest.approx(1 - 4.54e-5, abs=1e-6)


def test_categories_have_areas_and_ids(make_running, colored):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:2, :, 1] = 255
    image[10, :5, 2] = 255
    answer = make_running(colored).post(encode(image), ALL).json()
    assert answer["category_areas"] == {"cyst": 64, "teratoma": 5}
    assert answer["area"] == 69
    assert answer["model"]["threshold"] is None
    mask = decode_png(answer["mask"])
    assert (mask[0, 0], mask[10, 0], mask[20, 0]) == (1, 2, 0)


def test_model_of_a_run_is_described(run):
    predictor = Predictor.load(run, "cpu")
    model = describe_model(run, predictor)
    assert (model.name, model.data) == ("tiny/version_0", "phantoms")
    assert model.sha256 == checkpoint_digest(*find_checkpoints(run))
    assert (model.image_sizes, model.threshold, model.cleanup) == ([32], 0.5, [])
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert describe_model(checkpoint, predictor).name == "tiny/version_0"


def test_threshold_and_clean_up_of_a_run_are_described(run):
    predictor = Predictor.load(run, "cpu")
    predictor.postprocessing = Postprocessing(("horizontal",), 0.4, fill_holes=True)
    model = describe_model(run, predictor)
    assert (model.threshold, model.cleanup) == (0.4, ["holes filled"])


def test_every_calibration_and_format_is_described(running):
    """The description for programs names what an answer can hold and what is read."""
    schema = running.client.get("/openapi.json").json()
    answer = schema["components"]["schemas"]["Answer"]["properties"]
    for word in ("region", "PixelSpacing", "no lesion", "unknown:"):
        assert f"`{word}`" in answer["calibration"]["description"]
    body = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]
    description = body["schema"]["properties"]["file"]["description"]
    for name in (*FORMATS, "DICOM"):
        assert name in description


def test_health_and_model(running):
    health = running.client.get("/health").json()
    assert health == {"status": "ok", "waiting": 0, "places": 4}
    running.server.worker.stopping = True
    assert running.client.get("/health").json()["status"] == "stopping"
    assert running.client.get("/model").json()["sha256"] == "0123456789abcdef" * 4


def test_upload_stays_in_memory(make_running, bright, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise AssertionError("An upload was written to the disk.")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", refuse)
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    content = encode(noise)
    assert len(content) > 2 * 10**6
    running = make_running(bright, max_bytes=10**7)
    assert running.post(content).status_code == 200
    assert running.server.uploads.held == 0


# DICOM


def test_area_of_dicom_is_in_square_millimetres(running):
    # A pixel is 0.5 mm high and 2 mm wide: 30 of them are 30 mm^2.
    region = make_region((0, 31, 0, 31), (0.05, 0.2))
    dataset = make_dicom(draw_square(), SequenceOfUltrasoundRegions=[region])
    answer = running.post(encode_dicom(dataset)).json()
    assert (answer["area"], answer["area_mm2"]) == (30, pytest.approx(30))
    assert answer["pixel_height_mm"] == pytest.approx(0.5)
    assert answer["pixel_width_mm"] == pytest.approx(2)
    assert (answer["calibration"], answer["frames"]) == ("region", 1)


def test_picture_without_a_scale_has_no_area_in_square_millimetres(running):
    answer = running.post(encode(draw_square())).json()
    assert answer["area_mm2"] is None
    assert (answer["pixel_height_mm"], answer["pixel_width_mm"]) == (None, None)
    assert answer["calibration"] == "unknown: only a DICOM file tells the size of its pixels"
    answer = running.post(encode_dicom(make_dicom(draw_square()))).json()
    assert (answer["area_mm2"], answer["calibration"]) == (
        None,
        "unknown: the file is not calibrated",
    )


def test_frame_of_a_cine_is_chosen(running):
    black = np.zeros_like(draw_square())
    content = encode_dicom(make_dicom(np.stack([black, draw_square(), black])))
    assert running.post(content).json()["area"] == 0
    answer = running.post(content, "?frame=2").json()
    assert (answer["area"], answer["frames"]) == (30, 3)
    check_refusal(running.post(content, "?frame=4"), 400, "no frame 4; its last one is 3")
    check_refusal(running.post(content, "?frame=0"), 422, "frame: ")
    check_refusal(running.post(encode(black), "?frame=2"), 400, "no frame 2; its last one is 1")


def test_damaged_dicom_is_refused_without_its_header(running):
    content = encode_dicom(make_dicom(np.stack([draw_square()] * 2)))
    response = running.post(content[:-500])
    check_refusal(response, 400, "The picture: frame 2 of 2 cannot be decoded")
    assert "MARKED" not in response.text


def test_only_the_frame_that_is_asked_for_is_decoded_after_the_first(running):
    """A cine whose last frame is cut off is refused at its first frame; others are answered."""
    black = np.zeros_like(draw_square())
    cine = compress(make_dicom(np.stack([black, draw_square(), black])), RLELossless)
    content = encode_dicom(cine)[:-100]
    check_refusal(running.post(content), 400, "frame 3 of 3 cannot be decoded")
    assert running.post(content, "?frame=2").json()["area"] == 30
    check_refusal(running.post(content, "?frame=3"), 400, "frame 3 of 3 cannot be decoded")


@pytest.mark.parametrize("frame", [1, 2])
def test_dicom_of_too_many_pixels_is_refused_before_it_is_decoded(running, monkeypatch, frame):
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    cine = encode_dicom(make_dicom(np.stack([draw_square()] * 2)))
    # Its last frame can't be decoded.
    response = running.post(cine[:-500], f"?frame={frame}")
    check_refusal(response, 400, "32 rows and 32 columns, expected 1 to 1,000 pixels")


# Refusals


def check_refusal(response, status: int, *parts: str) -> None:
    """A refusal is a sentence in JSON."""
    assert response.status_code == status
    detail = response.json()["detail"]
    for part in parts:
        assert part in detail


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"hello", "no picture of a kind that is read (JPEG, PNG, BMP, TIFF, WEBP, "),
        (b"hello", ", AVIF, DICOM). Replace"),
        (b"", "no picture of a kind that is read"),
        (encode(draw_square())[:60], "cannot be read"),
        (encode(np.full((9, 9), 3000, np.uint16)), "16 bits"),
    ],
)
def test_unreadable_picture(running, content, part):
    check_refusal(running.post(content), 400, "The picture ", part)
    assert running.server.worker.taken == 0


def test_end_outside_the_picture(running):
    response = running.post(encode(draw_square()), "?ends=5,20,32,28")
    check_refusal(response, 400, "column 32, row 28, which lies outside the picture of 32 x 32")


def test_more_pairs_of_ends_than_two(running):
    response = running.post(encode(draw_square()), "?ends=5,20,25,28" + 2 * "&ends=18,20,12,28")
    check_refusal(response, 400, "expected one or two pairs")


def test_ends_of_categories(make_running, colored):
    response = make_running(colored).post(encode(draw_square()), "?ends=5,20,25,28")
    check_refusal(response, 400, "lesion alone")


@pytest.mark.parametrize("ends", ["", "5,20", "5,20,25,28,3", "5,20,25,2.5", "-1,20,25,28"])
def test_ends_that_are_no_two_points(running, ends):
    check_refusal(running.post(encode(draw_square()), f"?ends={ends}"), 422, "such as 120,80")


def test_picture_of_too_many_pixels(running, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    check_refusal(running.post(encode(draw_square())), 400, "more than 1,000 pixels")


def test_picture_of_too_many_bytes(make_running, bright):
    running = make_running(bright, max_bytes=500)
    check_refusal(running.post(bytes(501)), 413, "--max_mb")
    assert running.post(encode(draw_square())).status_code == 200


def test_picture_that_does_not_say_that_it_is_too_large(make_running, bright):
    running = make_running(bright, max_bytes=500)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    chunks = itertools.chain([head], itertools.repeat(bytes(100), 20))
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = running.client.post("/predict", content=chunks, headers=headers)
    check_refusal(response, 413, "more than 0.0005 MB")
    assert running.server.uploads.held == 0


@pytest.mark.parametrize("kind", [None, "image/png", "application/json", "multipart/mixed"])
def test_body_that_is_no_form(running, kind):
    headers = {"Content-Type": kind} if kind else {}
    response = running.client.post("/predict", content=b"{}", headers=headers)
    check_refusal(response, 415, "multipart/form-data", "'file'")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"hello"),
        ("multipart/form-data; boundary=x", b"-" * 50),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n"),
    ],
)
def test_broken_form(running, kind, body, caplog):
    response = running.client.post("/predict", content=body, headers={"Content-Type": kind})
    check_refusal(response, 400, "The form cannot be read: ")
    assert not [line for line in caplog.records if line.name.startswith("python_multipart")]


def test_form_without_the_file(running):
    files = {"picture": encode(draw_square())}
    check_refusal(running.client.post("/predict", files=files), 422, "no file in the field 'file'")


def test_text_instead_of_the_file(running):
    files = {"file": (None, b"hello")}
    check_refusal(running.client.post("/predict", files=files), 422, "no file in the field 'file'")


def test_two_files(running):
    content = encode(draw_square())
    files = [("file", content), ("file", content)]
    check_refusal(running.client.post("/predict", files=files), 400, "Too many files")


def test_wrong_parameter(running):
    response = running.post(encode(draw_square()), "?mask=perhaps")
    check_refusal(response, 422, "mask: Input should be a valid boolean")


def test_full_queue_is_refused_with_the_time_to_wait(make_running, bright):
    running = make_running(bright, places=3)
    running.server.worker.taken = 3
    running.server.worker._seconds = 1.5
    response = running.post(encode(draw_square()))
    check_refusal(response, 503, "3 pictures are waiting", "--queue", "in 5 s")
    assert response.headers["Retry-After"] == "5"
    running.server.worker.taken = 2
    assert running.post(encode(draw_square())).status_code == 200


def test_stopping_server_refuses(running):
    running.server.worker.stopping = True
    response = running.post(encode(draw_square()))
    check_refusal(response, 503, "stopping")
    assert response.headers["Retry-After"]


def test_memory_of_all_uploads_is_bounded(running):
    running.server.uploads.held = upload.UPLOADS_IN_MEMORY * 10**6
    response = running.post(encode(draw_square()))
    check_refusal(response, 503, "at once")
    assert response.headers["Retry-After"] == "5"
    assert running.server.uploads.held == upload.UPLOADS_IN_MEMORY * 10**6


def test_answer_that_takes_too_long(make_running, monkeypatch):
    from serving import WaitingNetwork

    monkeypatch.setattr(worker, "ANSWER_SECONDS", 0.1)
    network = WaitingNetwork()
    running = make_running(make_predictor(network))
    check_refusal(running.post(encode(draw_square())), 504, "longer than 0.1 s")
    assert running.server.worker.taken == 0
    network.release.set()


def test_bug_is_an_error_in_json_and_in_the_log(make_running, caplog):
    class Broken(BrightNetwork):
        def forward(self, images):
            raise ZeroDivisionError("a bug")

    running = make_running(make_predictor(Broken()))
    response = running.post(encode(draw_square()))
    check_refusal(response, 500, "The server failed")
    assert "a bug" not in response.text
    assert "ZeroDivisionError: a bug" in caplog.text
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_unknown_page(running):
    assert running.client.get("/admin").status_code == 404
    assert running.client.get("/predict").status_code == 405
