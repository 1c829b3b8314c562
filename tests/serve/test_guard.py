"""Other pages can't use the server, and ours load nothing from elsewhere."""

import base64
import hashlib
import re

import pytest

from ovseg.serve.guard import SECURITY_HEADERS
from serving import draw_square, encode


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:9000", "[::1]:8000"])
def test_names_of_this_machine_are_answered(running, host):
    assert running.client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "[::1", ""])
def test_other_names_are_refused_on_a_loopback_address(running, host):
    response = running.client.get("/health", headers={"Host": host})
    assert response.status_code == 403
    assert "127.0.0.1, ::1, localhost" in response.json()["detail"]


def test_any_name_is_answered_on_other_addresses(running):
    running.server.config.app.hosts = None
    assert running.client.get("/health", headers={"Host": "ward3"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:8000"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_pictures_of_other_pages_are_refused(running, headers, status):
    response = running.post(encode(draw_square()), headers=headers)
    assert response.status_code == status
    if status == 403:
        assert response.json() == {"detail": "Pages of other sites may not use this server."}


def test_other_pages_get_no_permission_to_read(running):
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    response = running.client.options("/predict", headers=headers)
    assert response.status_code == 403
    read = running.client.get("/model", headers={"Origin": "https://evil.example"})
    for answer in (response, read):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/", "/docs", "/health", "/openapi.json", "/gone"])
def test_every_answer_has_the_security_headers(running, path):
    headers = running.client.get(path).headers
    for name, value in SECURITY_HEADERS.items():
        if name != "Content-Security-Policy":
            assert headers[name] == value
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_only_the_style_and_script_of_a_page_are_allowed(running, path):
    response = running.client.get(path)
    policy = response.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    for name in ("style", "script"):
        [content] = re.findall(f"<{name}>(.*?)</{name}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert " style=" not in response.text
    assert "onclick" not in response.text


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_name_no_other_place(running, path):
    page = running.client.get(path).text
    places = set(re.findall(r"https?://[^/\s\"<]+", page))
    assert places <= {"http://127.0.0.1:8000"}  # of the example in /docs
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert set(links) <= {"data:image/png;base64,", "docs", "openapi.json", ".", "#top"}


def test_page_says_what_it_is_and_which_model_answers(running):
    page = running.client.get("/").text
    assert "For research only. This is no medical device" in page
    for part in ("bright/version_0", "0123456789ab", "phantoms", "32 x 32 pixels", "up to 1 MB"):
        assert part in page


def test_page_of_a_model_for_categories_names_them(make_running, colored):
    page = make_running(colored).client.get("/").text
    assert "cyst, teratoma" in page
    assert "the most probable category counts" in page


def test_docs_describe_every_path_key_and_refusal(running):
    schema = running.client.get("/openapi.json").json()
    page = running.client.get("/docs").text
    assert set(schema["paths"]) == {"/predict", "/model", "/health"}
    statuses = set(schema["paths"]["/predict"]["post"]["responses"])
    assert statuses == {"200", "400", "403", "408", "413", "415", "422", "503", "504"}
    assert set(schema["components"]["schemas"]) == {
        "Answer",
        "Health",
        "ModelDescription",
        "Problem",
    }
    texts = [*schema["paths"], *statuses]
    for kind in schema["components"]["schemas"].values():
        texts += kind["properties"]
        assert all(
            "description" in field or "$ref" in field for field in kind["properties"].values()
        )
    for text in texts:
        assert f">{text}<" in page or f" {text}<" in page
