"""`gallery.html`: every photo with its coloured masks, legend, probabilities; folded away: what is absent or unknown.

A page that opens from the file system. The photos lie beside it as thumbnails and load when they come into view; the
masks are SVG outlines inside the page, so that pointing at a class shows where it is. Labels and names are escaped. A
large run has several pages of `PAGE_SIZE` photos: a browser holds no more.
"""

import functools
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from jinja2 import Template
from markupsafe import Markup
from PIL import Image

from lasagna.masks.conversions import mask_to_rings
from lasagna.masks.palette import Colour, palette
from lasagna.masks.segmentation import Mask, Segmentation
from lasagna.pages import page_environment

THUMBNAIL_SIDE = 800
"""Longest side of a thumbnail in pixels: a card on a high-resolution screen."""


def image_to_thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of an RGB image."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=82, optimize=True)
    return file.getvalue()


def thumbnail_name(content: str) -> str:
    """Where the thumbnail of an image content (its hash) lies, relative to the page."""
    return f"gallery/{content}.jpg"


def thumbnail_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the thumbnail of an image of this (height, width). Small images stay as they are."""
    scale = min(1.0, THUMBNAIL_SIDE / max(size))
    height, width = (max(1, round(n * scale)) for n in size)
    return height, width


PAGE_SIZE = 500
"""Photos on a page of a large run."""


@dataclass(frozen=True)
class Shape:
    """A class on a card: its place in the query, name, probability (None where unknown), colour, and outline (None
    where it is not present)."""

    index: int
    name: str
    probability: float | None
    colour: str
    ink: str
    outline: str | None
    share: float


@dataclass(frozen=True)
class Card:
    """One photo. Addresses are relative to the page, and quoted."""

    name: str
    photo: str
    thumbnail: str
    width: int
    height: int
    view: tuple[int, int]
    seconds: float
    present: list[Shape]
    absent: list[Shape]
    unknown: list[Shape]


def make_card(
    name: str, photo: Path | str, thumbnail: str, page_folder: Path, segmentation: Segmentation, seconds: float
) -> Card:
    """The card of an image.

    Args:
        name: What the photo is called on the page.
        photo: The image file, linked to; or an address, as it is.
        thumbnail: Address of the thumbnail, relative to the page's folder.
        page_folder: Where the page will lie.
        segmentation: The answers.
        seconds: What the image took.
    """
    height, width = thumbnail_size(segmentation.size)
    colours = palette(len(segmentation.classes))
    shapes = [
        Shape(
            index=i,
            name=answer.name,
            probability=None if answer.is_unknown else float(answer.probability),
            colour="#{:02x}{:02x}{:02x}".format(*colours[i]),
            ink=_ink(colours[i]),
            outline=None if answer.mask is None else _outline(answer.mask, (height, width)),
            share=answer.area / (segmentation.size[0] * segmentation.size[1]),
        )
        for i, answer in enumerate(segmentation.classes)
    ]
    return Card(
        name=name,
        photo=photo if isinstance(photo, str) else quote(os.fsencode(os.path.relpath(photo, page_folder))),
        thumbnail=quote(thumbnail),
        width=segmentation.size[1],
        height=segmentation.size[0],
        view=(width, height),
        seconds=seconds,
        present=sorted((s for s in shapes if s.outline is not None), key=lambda s: -s.share),
        absent=sorted((s for s in shapes if s.outline is None and s.probability is not None), key=_likeliest_first),
        unknown=[s for s in shapes if s.probability is None],
    )


def _likeliest_first(shape: Shape) -> float:
    return -(shape.probability or 0.0)


@dataclass(frozen=True)
class Page:
    """A page of the gallery, as its siblings link to it: numbers of its first and last photo, from 1."""

    address: str
    first: int
    last: int
    current: bool


def card_to_html(card: Card, *, with_seconds: bool) -> str:
    """The card's part of a page.

    Args:
        with_seconds: Whether it says what the image took.
    """
    template = _template("gallery_card.html")
    return template.render(card=card, with_seconds=with_seconds)


def render_page(
    fragments: Iterable[str],
    shown: int,
    counts: Mapping[str, int],
    failures: Iterable[dict[str, str]],
    *,
    model_version: str | None,
    seconds: float,
    count: int,
    pages: Sequence[Page] = (),
) -> Iterator[str]:
    """A page, piece by piece.

    Args:
        fragments: What `card_to_html` gave, in order.
        shown: Cards on this page.
        counts: Of each class the cards of this page that have it, in query order.
        failures: `{"path", "reason"}` of what could not be annotated.
        model_version: None where people annotated.
        seconds, count: Of the whole run.
        pages: All pages, where there are several.
    """
    yield from _template("gallery.html").generate(
        cards=map(Markup, fragments),
        shown=shown,
        counts=counts,
        failures=list(failures),
        model_version=model_version,
        seconds=seconds,
        count=count,
        pages=pages,
    )


def render_gallery(
    cards: Iterable[Card],
    failures: Iterable[dict[str, str]],
    *,
    class_names: Iterable[str],
    model_version: str | None,
    seconds: float,
) -> str:
    """All cards on one page; arguments as for `render_page`."""
    cards = list(cards)
    counts: dict[str, int] = dict.fromkeys(class_names, 0)
    for card in cards:
        for name in {shape.name for shape in card.present}:
            counts[name] += 1
    fragments = (card_to_html(card, with_seconds=model_version is not None) for card in cards)
    about: dict[str, Any] = {"model_version": model_version, "seconds": seconds, "count": len(cards)}
    return "".join(render_page(fragments, len(cards), counts, failures, **about))


@functools.cache
def _template(name: str) -> Template:
    return page_environment().get_template(name)


def _outline(mask: Mask, size: tuple[int, int]) -> str:
    """SVG path data of a mask at the thumbnail's size; holes are rings of their own (use the even-odd rule)."""
    height, width = size
    if mask.shape != size:
        covered = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)
        mask = np.asarray(covered >= 128)
    rings = [ring for part in mask_to_rings(mask, 0.8, min_area=6.0) for ring in part]
    return "".join("M" + " ".join(f"{x:g},{y:g}" for x, y in ring) + "z" for ring in rings)


def _ink(colour: Colour) -> str:
    """Black or white, whichever reads better on the colour (relative luminance, WCAG 2)."""
    red, green, blue = ((c / 255) ** 2.2 for c in colour)
    return "#000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.25 else "#fff"
