"""`gallery.html`: every photo with its coloured masks, legend, probabilities and, folded away, the absent classes.

One page that opens from the file system. The photos lie beside it as thumbnails and load when they come into view; the
masks are SVG outlines inside the page, so that pointing at a class shows where it is. Labels and names are escaped.
"""

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from PIL import Image

from lasagna.masks import mask_to_rings
from lasagna.pages import page_environment
from lasagna.palette import Colour, palette
from lasagna.segmentation import Mask, Segmentation

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


@dataclass(frozen=True)
class Shape:
    """A class on a card: its place in the query, name, probability, colour, and outline (None where absent)."""

    index: int
    name: str
    probability: float
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


def make_card(
    name: str, photo: Path, thumbnail: str, page_folder: Path, segmentation: Segmentation, seconds: float
) -> Card:
    """The card of an image.

    Args:
        name: What the photo is called on the page.
        photo: The image file, linked to.
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
            probability=float(answer.probability),
            colour="#{:02x}{:02x}{:02x}".format(*colours[i]),
            ink=_ink(colours[i]),
            outline=None if answer.mask is None else _outline(answer.mask, (height, width)),
            share=answer.area / (segmentation.size[0] * segmentation.size[1]),
        )
        for i, answer in enumerate(segmentation.classes)
    ]
    return Card(
        name=name,
        photo=quote(os.fsencode(os.path.relpath(photo, page_folder))),
        thumbnail=quote(thumbnail),
        width=segmentation.size[1],
        height=segmentation.size[0],
        view=(width, height),
        seconds=seconds,
        present=sorted((s for s in shapes if s.outline is not None), key=lambda s: -s.share),
        absent=sorted((s for s in shapes if s.outline is None), key=lambda s: -s.probability),
    )


def render_gallery(cards: Iterable[Card], failures: Iterable[dict[str, str]], **about: Any) -> str:
    """The page.

    Args:
        cards: One per photo, in order.
        failures: `{"path", "reason"}` of what could not be annotated.
        **about: `class_names`, and `model_version` and `seconds` of the whole run; no model version where people
            annotated.
    """
    cards = list(cards)
    counts: dict[str, int] = dict.fromkeys(about["class_names"], 0)
    for card in cards:
        for name in {shape.name for shape in card.present}:
            counts[name] += 1
    template = page_environment().get_template("gallery.html")
    return template.render(cards=cards, failures=list(failures), counts=counts, **about)


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
