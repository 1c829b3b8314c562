"""The page in Chromium, as a user uses it."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicom_files import encode_dicom, make_dicom, make_region
from ovseg import predict_guided
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.inference.predictor import Predictor
from serving import draw_square, encode, listen

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, see [test]")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


class Visit:
    """A page, and what it asked for and complained of."""

    def __init__(self, browser: "sync_api.Browser", url: str, **options: object):
        self.url = url
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)

    def choose(self, **pictures: bytes) -> None:
        """Choose pictures, PNG where a name has no dot, and wait until all are done."""
        before = self.page.locator("#list li").count()
        files = []
        for stem, content in pictures.items():
            name = stem if "." in stem else f"{stem}.png"
            files.append({"name": name, "mimeType": "", "buffer": content})
        self.page.set_input_files("#files", files)
        done = self.page.locator("#list li:has(button), #list li.problem")
        sync_api.expect(done).to_have_count(before + len(files))

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def save(self, kind: str) -> tuple[str, np.ndarray]:
        """Download a picture: its name, and the picture."""
        with self.page.expect_download() as download:
            self.page.click(f"#save-{kind}")
        content = Path(download.value.path()).read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            return download.value.suggested_filename, np.array(picture)

    def move(self, slider: str, key: str, times: int = 1) -> None:
        self.page.focus(slider)
        for _ in range(times):
            self.page.keyboard.press(key)

    def mark(self, *ends: tuple[int, int]) -> None:
        """Click the middle of pixels, (column, row), of a picture that is shown at its own size."""
        for column, row in ends:
            self.page.click("#canvas", position={"x": column + 0.5, "y": row + 0.5})

    def check(self) -> None:
        """Nothing was asked of another place, nothing failed, and nothing is too wide."""
        inner = ("data:", "blob:", self.url)
        assert [url for url in self.requests if not url.startswith(inner)] == []
        assert self.complaints == []
        width = "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
        assert self.page.evaluate(width) <= 0


def two_squares() -> np.ndarray:
    """A white square of 30 pixels, a white one of 4 and a grey one of 16."""
    image = draw_square()
    image[20:22, 2:4] = 255
    image[20:24, 20:24] = 120  # a probability of 0.36
    return image


def test_phantom_is_segmented_as_by_the_predictor(browser, run):
    predictor = Predictor.load(run, "cpu")
    image = make_phantom(1, 64)[0][:40]
    prediction = predictor.predict(image)
    area = int(prediction.labels.sum())
    assert area > 0
    with listen(predictor) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(phantom=encode(image))
        assert visit.text("#name") == "phantom.png"
        percent = 100 * area / image[..., 0].size
        assert visit.text("#area") == f"{area} pixels ({percent:.1f} % of the picture)"
        assert visit.text("#size") == "64 x 40 pixels"

        name, mask = visit.save("mask")
        assert name == "phantom_mask.png"
        assert np.array_equal(mask, prediction.labels * 255)
        name, probs = visit.save("probabilities")
        assert name == "phantom_probabilities.png"
        assert np.array_equal(probs, np.round(prediction.probs * 255))
        visit.check()


def test_frames_of_a_cine_are_chosen_and_measured(browser, cleaned):
    black = np.zeros_like(draw_square())
    region = make_region((0, 31, 0, 31), (0.05, 0.2))
    frames = np.stack([black, draw_square()])
    cine = make_dicom(frames, SequenceOfUltrasoundRegions=[region])
    with listen(cleaned) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(cine=encode_dicom(cine))
        assert visit.text("#name") == "cine.png, frame 1"
        assert visit.text("#area") == "no lesion"
        assert visit.text("#calibration") == (
            "unknown: the file gives it by region, and no lesion was found in one"
        )
        visit.page.fill("#frame", "2")
        visit.page.keyboard.press("Tab")
        sync_api.expect(visit.page.locator("#name")).to_have_text("cine.png, frame 2")
        assert visit.text("#area") == "30 pixels (2.9 % of the picture), 30.0 mm²"
        assert visit.text("#calibration") == "0.5 mm high, 2 mm wide, from the file (region)"
        name, mask = visit.save("mask")
        assert name == "cine_0002_mask.png"
        assert np.array_equal(mask > 0, draw_square()[..., 0] > 0)

        visit.move("#threshold", "ArrowLeft", 20)
        assert "mm²" not in visit.text("#area")
        visit.check()


def test_frames_of_a_cine_are_stepped_by_keyboard(browser, bright):
    black = np.zeros_like(draw_square())
    cine = encode_dicom(make_dicom(np.stack([black, draw_square(), black])))
    with listen(bright) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(**{"cine.dcm": cine})
        visit.page.focus("#frame")
        name = sync_api.expect(visit.page.locator("#name"))
        for frame in (2, 3):
            visit.page.keyboard.press("ArrowUp")
            name.to_have_text(f"cine.dcm, frame {frame}")
        visit.page.keyboard.press("ArrowDown")
        name.to_have_text("cine.dcm, frame 2")
        assert visit.page.evaluate("document.activeElement.id") == "frame"

        asked = len(visit.requests)
        field = sync_api.expect(visit.page.locator("#frame"))
        visit.page.fill("#frame", "")
        visit.page.keyboard.press("Tab")
        field.to_have_value("2")
        assert len(visit.requests) == asked
        visit.page.fill("#frame", "9")
        visit.page.keyboard.press("Tab")
        name.to_have_text("cine.dcm, frame 3")
        field.to_have_value("3")
        visit.check()


def test_slider_moves_while_a_frame_is_in_work(browser, cleaned):
    cine = encode_dicom(make_dicom(np.stack([draw_square(), two_squares()])))
    with listen(cleaned) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(**{"cine.dcm": cine})
        held: list[sync_api.Route] = []
        visit.page.route("**/predict?frame=2*", lambda route: held.append(route))
        with visit.page.expect_request("**/predict?frame=2*"):
            visit.move("#frame", "ArrowUp")
        visit.move("#threshold", "ArrowLeft", 20)
        held[0].continue_()
        sync_api.expect(visit.page.locator("#name")).to_have_text("cine.dcm, frame 2")
        assert visit.text("#threshold-value") == "0.30"
        assert visit.page.input_value("#threshold") == "0.3"
        assert visit.text("#area").startswith("50 pixels (4.9 %")
        assert visit.text("#list li").startswith("cine.dcm, frame 2: 30 pixels")
        visit.check()


def test_lesion_is_outlined_anew_when_its_ends_are_clicked(browser, bright):
    image = draw_square()
    guided = predict_guided(bright, image, [((5, 20), (25, 28))])
    with listen(bright) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(scan=encode(image))
        clear = visit.page.locator("#clear-ends")
        assert clear.is_disabled()
        visit.mark((5, 20))
        assert visit.text("#ends-status") == "One end is marked. Click the opposite one."
        visit.mark((25, 28))
        area = sync_api.expect(visit.page.locator("#area"))
        area.to_contain_text(f"{guided.area} pixels")
        assert visit.text("#note").endswith("with the ends that you marked.")
        name, mask = visit.save("mask")
        assert name == "scan_ends_mask.png"
        assert np.array_equal(mask, guided.labels * 255)
        _, overlay = visit.save("overlay")
        assert overlay[20, 5, 2] < overlay[20, 5, 0]  # yellow

        twice = predict_guided(bright, image, [((5, 20), (25, 28)), ((18, 20), (12, 28))])
        visit.mark((18, 20), (12, 28))
        area.to_contain_text(f"{twice.area} pixels")
        clear.click()
        area.to_contain_text("30 pixels")
        assert visit.text("#note") == "This is the model's own mask."
        assert clear.is_disabled()

        visit.mark((9, 9))
        clear.click()  # one end alone asks nobody
        assert np.array_equal(visit.save("overlay")[1][20:, :, :3], image[20:])
        visit.check()


def test_ends_that_can_not_be_are_a_sentence(browser, bright):
    with listen(bright) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(scan=encode(draw_square()))
        visit.mark((5, 20), (5, 20))
        status = sync_api.expect(visit.page.locator("#ends-status"))
        status.to_contain_text("Two ends of the lesion are 0 pixels from each other")
        assert visit.text("#area").startswith("30 pixels")
        assert visit.page.locator("#clear-ends").is_disabled()


def test_ends_are_marked_by_keyboard(browser, bright):
    image = draw_square()
    guided = predict_guided(bright, image, [((6, 16), (16, 26))])
    with listen(bright) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(scan=encode(image))
        visit.move("#canvas", "Shift+ArrowLeft")  # from the middle, column 16
        visit.move("#canvas", "Enter")
        visit.move("#canvas", "Shift+ArrowDown")
        visit.move("#canvas", "ArrowRight", 10)
        visit.move("#canvas", "Enter")
        sync_api.expect(visit.page.locator("#area")).to_contain_text(f"{guided.area} pixels")
        assert np.array_equal(visit.save("mask")[1], guided.labels * 255)
        visit.check()


def test_wrong_third_end_is_taken_back_alone(browser, bright):
    with listen(bright) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(scan=encode(draw_square()))
        visit.mark((5, 20), (25, 28))
        note = sync_api.expect(visit.page.locator("#note"))
        note.to_contain_text("with the ends")
        asked = len(visit.requests)
        for take_back in ("Escape", "button"):
            visit.mark((9, 9))
            assert visit.text("#ends-status").startswith("One end is marked.")
            if take_back == "Escape":
                visit.page.keyboard.press("Escape")
            else:
                visit.page.click("#clear-ends")
            assert visit.text("#ends-status") == ""
        assert len(visit.requests) == asked
        note.to_contain_text("with the ends")
        visit.check()


def test_ends_and_frames_wait_for_each_other(browser, bright):
    cine = encode_dicom(make_dicom(np.stack([draw_square(), draw_square()])))
    with listen(bright) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(**{"cine.dcm": cine})
        visit.mark((5, 20), (25, 28))
        clear = visit.page.locator("#clear-ends")
        sync_api.expect(clear).to_be_enabled()
        held: list[sync_api.Route] = []
        visit.page.route("**/predict?frame=2*", lambda route: held.append(route))
        with visit.page.expect_request("**/predict?frame=2*"):
            visit.move("#frame", "ArrowUp")
        assert clear.is_disabled()
        assert "in work" in visit.text("#ends-status")
        visit.mark((9, 9))  # has no effect
        held[0].continue_()
        sync_api.expect(visit.page.locator("#name")).to_have_text("cine.dcm, frame 2")
        assert visit.text("#ends-status") == ""
        visit.check()


def test_viewer_stays_while_ends_are_marked(browser, bright):
    with listen(bright) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(first=encode(draw_square()))
        visit.mark((5, 20))
        visit.choose(second=encode(draw_square()))
        assert visit.text("#name") == "first.png"
        visit.check()


def test_another_frame_has_no_ends(browser, bright):
    cine = encode_dicom(make_dicom(np.stack([draw_square(), draw_square()])))
    with listen(bright) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(**{"cine.dcm": cine})
        visit.mark((5, 20), (25, 28))
        clear = sync_api.expect(visit.page.locator("#clear-ends"))
        clear.to_be_enabled()
        visit.move("#frame", "ArrowUp")
        sync_api.expect(visit.page.locator("#name")).to_have_text("cine.dcm, frame 2")
        assert visit.text("#area").startswith("30 pixels")
        clear.to_be_disabled()
        visit.check()


def test_names_of_saved_files_lose_known_suffixes_only(browser, bright):
    dicom = encode_dicom(make_dicom(draw_square()))
    names = {
        "1.2.840.10": "1.2.840.10_mask.png",
        "scan.DCM": "scan_mask.png",
        "week.12.png": "week.12_mask.png",
    }
    with listen(bright) as listening:
        visit = Visit(browser, listening.url)
        for name, saved in names.items():
            visit.choose(**{name: encode(draw_square()) if name.endswith("png") else dicom})
            assert visit.save("mask")[0] == saved
        visit.check()


def test_sliders_work_at_once_and_the_page_says_which_mask_it_shows(browser, cleaned):
    with listen(cleaned) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(scan=encode(two_squares()))
        assert visit.text("#area").startswith("30 pixels (2.9 %")
        assert visit.text("#threshold-value") == "0.5 (the model's)"
        assert visit.text("#note") == "This is the model's own mask."
        asked = len(visit.requests)

        visit.move("#threshold", "ArrowLeft", 20)
        assert visit.text("#threshold-value") == "0.30"
        assert visit.text("#area").startswith("50 pixels (4.9 %")
        note = visit.text("#note")
        assert note.startswith("Not the model's own mask: what is above 0.30 in")
        assert note.endswith("without the model's clean-up (largest component).")
        _, mask = visit.save("mask")
        expected = two_squares()[..., 0] > 0
        assert np.array_equal(mask[..., 0] == 255, expected)
        assert np.unique(mask[..., :3]).tolist() == [0, 255]

        visit.move("#threshold", "ArrowRight", 20)
        assert visit.text("#note") == "This is the model's own mask."
        visit.move("#threshold", "Home")
        assert visit.text("#threshold-value") == "0.01"
        visit.page.click("#reset")
        assert visit.text("#area").startswith("30 pixels")
        assert [url for url in visit.requests[asked:] if not url.startswith("blob:")] == []
        visit.check()


def test_overlay_is_the_picture_with_tint_and_outline(browser, cleaned):
    with listen(cleaned) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(scan=encode(two_squares()))
        _, overlay = visit.save("overlay")
        assert overlay[4, 10, :3].tolist() == [255, 60, 60]  # outline
        # 30 % of (255, 60, 60) over white; the canvas may round by one.
        assert np.abs(overlay[6, 12, :3].astype(int) - [255, 196, 196]).max() <= 1
        assert overlay[20, 2, :3].tolist() == [255, 255, 255]  # no lesion, by the clean-up

        visit.move("#opacity", "Home")
        assert visit.text("#opacity-value") == "0 %"
        _, overlay = visit.save("overlay")
        inside = np.zeros((32, 32), bool)
        inside[4:9, 10:16] = True
        outline = inside.copy()
        outline[5:8, 11:15] = False
        assert np.array_equal(overlay[~outline][:, :3], two_squares()[~outline])
        visit.check()


def test_several_pictures_and_errors_in_order(browser, bright):
    empty = encode(np.zeros((32, 32, 3), np.uint8))
    with listen(bright) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(first=encode(draw_square()), broken=b"hello", second=empty)
        assert visit.text("#list li:nth-child(1)").startswith("first.png: 30 pixels")
        problem = visit.text("#list li:nth-child(2)")
        assert problem.startswith("broken.png: The picture cannot be read: it is damaged, or no")
        assert visit.text("#list li:nth-child(3)") == "second.png: no lesion"
        assert visit.text("#name") == "first.png"
        assert visit.page.locator("#alarm").is_hidden()

        visit.page.focus("#list li:nth-child(3) button")
        visit.page.keyboard.press("Enter")
        assert visit.text("#name") == "second.png"
        assert visit.page.locator("#alarm").is_visible()
        large = bytes(1_100_000)
        visit.choose(large=large)
        assert "more than 1 MB" in visit.text("#list li:nth-child(4)")
        # Chromium itself writes a line for the answer 400.
        assert [line for line in visit.complaints if "400 (Bad Request)" not in line] == []


def test_server_that_has_gone_is_a_sentence(browser, bright):
    with listen(bright) as listening:
        visit = Visit(browser, listening.url)
    visit.choose(scan=encode(draw_square()))
    assert visit.text("#list li") == "scan.png: The server does not answer. Was it stopped?"


def test_categories_have_no_threshold(browser, colored):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:2, :, 1] = 255
    image[10, :5, 2] = 255
    with listen(colored) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(scan=encode(image))
        assert visit.text("#area") == (
            "cyst 64 pixels (6.3 % of the picture), teratoma 5 pixels (0.5 % of the picture)"
        )
        assert visit.page.locator("#threshold").is_hidden()
        assert visit.page.locator("#clear-ends").count() == 0
        _, mask = visit.save("mask")
        assert (mask[0, 0], mask[10, 0], mask[20, 0]) == (1, 2, 0)
        visit.check()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_the_screen_in_both_schemes(browser, bright, width, scheme):
    size = {"width": width, "height": 844}
    with listen(bright) as listening:
        visit = Visit(browser, listening.url, viewport=size, color_scheme=scheme)
        visit.choose(**{"a_long_name_" * 9: encode(draw_square())})
        background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        visit.check()


def test_page_is_used_by_keyboard_alone(browser, bright):
    with listen(bright) as listening:
        visit = Visit(browser, listening.url)
        visit.choose(scan=encode(draw_square()))
        reached = []
        visit.page.evaluate("document.activeElement.blur()")
        for _ in range(9):
            visit.page.keyboard.press("Tab")
            reached.append(visit.page.evaluate("document.activeElement.id"))
    wanted = ["files", "opacity", "threshold", "save-mask", "save-overlay", "save-probabilities"]
    assert [name for name in reached if name in wanted] == wanted
