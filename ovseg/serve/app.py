"""The web application: a page for people, and the same for programs."""

import base64
import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from ovseg import __version__
from ovseg.core.drawing import PALETTE, PRED
from ovseg.core.pages import render_page
from ovseg.core.text import printable
from ovseg.data.pictures import DICOM_SUFFIXES, FORMATS, SUFFIXES
from ovseg.inference.guided import Ends
from ovseg.serve.answer import Answer, ModelDescription, Wanted
from ovseg.serve.upload import FIELD, Uploads
from ovseg.serve.worker import Worker

LOG = logging.getLogger("ovseg.serve")
TEMPLATES = Path(__file__).parent
# What a client that has gone away would have been answered; no standard has a number for it.
CLIENT_GONE = 499
Frame = Annotated[int, Query(ge=1, description="Of a cine (DICOM), from 1.")]
Asked = Annotated[bool, Query(description="Whether the answer holds this picture.")]
EndsTexts = Annotated[
    list[str],
    Query(
        description="Column and row, in pixels of the picture as it is answered, of two opposite "
        "points of the lesion's edge, as 120,80,300,210: the outline is that of the one lesion "
        "between them. Given twice, the second pair crosses the first.",
    ),
]


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="A sentence for the user.")


class Health(BaseModel):
    """Whether the server takes pictures."""

    status: str = Field(description="ok, or stopping.")
    waiting: int = Field(description="Pictures that wait or are in work.")
    places: int = Field(description="How many may.")


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {
        "model": Problem,
        "description": "The picture or the form can't be read, or the ends don't fit it.",
    },
    403: {"model": Problem, "description": "The request is from a page of another site."},
    408: {"model": Problem, "description": "The picture arrived too slowly."},
    413: {"model": Problem, "description": "The picture is too large."},
    415: {"model": Problem, "description": "The body is no form."},
    422: {"model": Problem, "description": "A parameter is wrong, or the form has no file."},
    503: {"model": Problem, "description": "Too many pictures wait. Retry-After says how long."},
    504: {"model": Problem, "description": "The answer took too long and was given up."},
}
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {
                            "type": "string",
                            "format": "binary",
                            "description": f"The picture: {', '.join(FORMATS)} of 8 bits a "
                            "channel, or DICOM.",
                        }
                    },
                }
            }
        },
    }
}


def build_app(worker: Worker, uploads: Uploads) -> FastAPI:
    """The application around a worker."""
    app = FastAPI(
        title="ovseg serve",
        version=__version__,
        description="Outlines of ovarian tumours in ultrasound pictures. For research only: it is "
        "no medical device.",
        docs_url=None,  # FastAPI's own pages load their script from a CDN
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.add_exception_handler(RequestValidationError, _describe_parameters)
    app.add_exception_handler(ClientDisconnect, _end_quietly)
    app.add_exception_handler(Exception, _describe_bug)
    page = _safe_page("page.html.j2", **_page_values(worker, uploads))

    @app.post("/predict", response_model=Answer, responses=PROBLEMS, openapi_extra=FORM)
    async def predict(
        request: Request,
        frame: Frame = 1,
        ends: EndsTexts = [],  # noqa: B006 (nobody changes it)
        mask: Asked = False,
        probabilities: Asked = False,
        picture: Asked = False,
    ) -> Response:
        """Outline the lesion in a picture, or in a frame of a cine (DICOM)."""
        worker.check_place()  # before all of it is sent in vain
        wanted = Wanted(frame, _read_calipers(ends), mask, probabilities, picture)
        with uploads.count() as count:
            content = await uploads.read(request, count)
            answer = await worker.answer(content, wanted, request)
        return Response(answer, media_type="application/json")

    @app.get("/model")
    async def model() -> ModelDescription:
        """Describe the model."""
        return worker.model

    @app.get("/health")
    async def health() -> Health:
        """Tell whether the server takes pictures, and how many wait."""
        status = "stopping" if worker.stopping else "ok"
        return Health(status=status, waiting=worker.taken, places=worker.places)

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return page

    docs = _safe_page("docs.html.j2", schema=app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def show_docs() -> HTMLResponse:
        return docs

    return app


def _read_calipers(texts: list[str]) -> tuple[Ends, ...]:
    """The pairs of points of the parameter `ends`; HTTPException 422 for what is none."""
    calipers = []
    for text in texts:
        if not re.fullmatch(r"\d{1,5}(,\d{1,5}){3}", text, re.ASCII):
            raise HTTPException(
                422,
                f"ends: {printable(text)!r} is no pair of points, expected column,row,column,row "
                "in whole pixels, such as 120,80,300,210.",
            )
        first_column, first_row, last_column, last_row = map(int, text.split(","))
        calipers.append(((first_column, first_row), (last_column, last_row)))
    return tuple(calipers)


def _page_values(worker: Worker, uploads: Uploads) -> dict[str, object]:
    """What the template of the page is filled with."""
    colors = PALETTE if worker.model.categories else (PRED,)
    return {
        "model": worker.model,
        "max_mb": uploads.max_bytes / 1e6,
        "settings": json.dumps(
            {
                "threshold": worker.model.threshold,
                "cleanup": worker.model.cleanup,
                "categories": worker.model.categories,
                "colors": colors,
                "maxBytes": uploads.max_bytes,
                "suffixes": (*SUFFIXES, *DICOM_SUFFIXES),
            }
        ),
    }


def _safe_page(template: str, **values: object) -> HTMLResponse:
    """A page whose own style and script are all that a browser runs of it."""
    page = render_page(TEMPLATES / template, **values)
    policy = (
        "default-src 'none'; connect-src 'self'; img-src 'self' data: blob:; "
        f"style-src {_hash_elements(page, 'style')}; script-src {_hash_elements(page, 'script')}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def _hash_elements(page: str, name: str) -> str:
    """The hashes by which a Content-Security-Policy allows the inline elements of a name."""
    hashes = []
    for content in re.findall(f"<{name}>(.*?)</{name}>", page, re.DOTALL):
        digest = hashlib.sha256(content.encode()).digest()
        hashes.append(f"'sha256-{base64.b64encode(digest).decode()}'")
    return " ".join(hashes)


async def _describe_parameters(request: Request, error: Exception) -> JSONResponse:
    """All wrong parameters in a sentence."""
    assert isinstance(error, RequestValidationError)
    problems = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"][1:])
        problems.append(f"{name}: {problem['msg']}")
    return JSONResponse({"detail": "; ".join(problems)}, 422)


async def _end_quietly(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _describe_bug(request: Request, error: Exception) -> JSONResponse:
    LOG.error("A request failed.", exc_info=error)
    return JSONResponse({"detail": "The server failed; its terminal says how."}, 500)
