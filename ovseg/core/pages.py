"""Web pages that are one file: no server, no network, pictures inside."""

import base64
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ovseg.core.files import atomic_path
from ovseg.core.plots import figure_svg
from ovseg.core.text import printable

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg"}
JPEG_QUALITY = 85


def write_page(path: Path, template: Path, **values: object) -> None:
    """Fill a template and write the page; it appears when it is whole.

    Args:
        path: the page.
        template: see `render_page`.
        values: see `render_page`.
    """
    page = render_page(template, **values)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_page(template: Path, **values: object) -> str:
    """Fill a template.

    Args:
        template: a file that may extend `base.html.j2` of this folder. All values are escaped.
        values: for the template; one that is missing is an error.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_show,
    )
    return environment.get_template(template.name).render(values)


def _show(value: object) -> object:
    """A value of a template as it may be shown; what a macro made is shown already."""
    if hasattr(value, "__html__"):
        return value
    return printable(value)


def embed_figures(figures: dict[str, Figure]) -> dict[str, Markup]:
    """Figures by name as SVG, in the page's own colours; their texts can be selected."""
    # Matplotlib escapes what it writes.
    return {name: Markup(figure_svg(figure, name)) for name, figure in figures.items()}


def embed_file(path: Path) -> str:
    """A picture file, .png or .jpg, as a data URL."""
    return _data_url(path.read_bytes(), MEDIA_TYPES[path.suffix])


def embed_image(image: np.ndarray, suffix: str = ".jpg") -> str:
    """A picture, uint8 (H, W, 3) RGB or (H, W, 4) RGBA, as a data URL; RGBA needs .png."""
    code = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == ".jpg" else []
    _, content = cv2.imencode(suffix, cv2.cvtColor(image, code), options)
    return _data_url(content.tobytes(), MEDIA_TYPES[suffix])


def _data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def svg_path(mask: np.ndarray) -> str:
    """The outlines of a mask, bool (H, W), as the `d` of an SVG path in its pixels."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in contours:
        points = [f"{x + 0.5:g} {y + 0.5:g}" for x, y in contour[:, 0].tolist()]
        parts.append(f"M{'L'.join(points)}Z")
    return "".join(parts)
