"""`lasagna bench rle`: brush RLE of Label Studio, ours against label-studio-sdk's."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cv2
import numpy as np

from lab.bench.command import Row, report, sample_images, time_interleaved
from lasagna.masks.brush_rle import encode_brush_rle
from lasagna.masks.conversions import brush_rle_to_mask, mask_to_brush_rle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def rgba_samples(size: tuple[int, int]) -> "dict[str, NDArray[np.uint8]]":
    """Pictures of masks by name, uint8 (H, W, 4): as we write them (all four channels alike), and as the editor paints.

    ellipse: one smooth part. photo: where a photo is brighter than its median, as ragged as an annotation made by
    thresholds. noise: the same of blurred noise, thousands of parts. strokes: anti-aliased lines of a label's colour.
    """
    height, width = size
    y, x = np.ogrid[:height, :width]
    ellipse = ((x / width - 0.5) / 0.35) ** 2 + ((y / height - 0.5) / 0.3) ** 2 < 1
    photo = cv2.resize(sample_images(1)[0], (width, height), interpolation=cv2.INTER_CUBIC).mean(axis=2)
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.standard_normal(size), (0, 0), 4.0)
    found = {"ellipse": ellipse, "photo": photo > np.median(photo), "noise": noise > 0.0}
    samples = {
        name: np.repeat(np.where(mask, np.uint8(255), np.uint8(0))[..., None], 4, 2) for name, mask in found.items()
    }

    alpha = np.zeros(size, np.uint8)
    for _ in range(3):
        points = (rng.random((4, 2)) * (width, height)).astype(np.int32)
        cv2.polylines(alpha, [points], False, 255, max(1, height // 80), cv2.LINE_AA)
    strokes = np.zeros((*size, 4), np.uint8)
    strokes[alpha > 0, :3] = (230, 25, 75)
    strokes[..., 3] = alpha
    return {**samples, "strokes": strokes}


@click.command(
    epilog="""\b
Examples:
  lasagna bench rle
  lasagna bench rle --size 1024x768 --json
"""
)
@click.option("--size", default="2048x1536", show_default=True, metavar="WxH", help="Of the masks, in pixels.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Median of so many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def rle(size: str, repeats: int, as_json: bool, out: Path | None) -> None:
    """Encode and decode brush masks, side by side with label-studio-sdk.

    equal: both write the same bytes, and both read the same mask. Exit code 1 when it is not so.
    """
    try:
        width, height = (int(part) for part in size.split("x"))
    except ValueError as error:
        raise click.BadParameter(f"{size!r} is not a size such as 2048x1536", param_hint="--size") from error
    if min(width, height) < 1:
        raise click.BadParameter(f"{size!r} has a side below one pixel", param_hint="--size")
    rows = [_row(name, picture, repeats) for name, picture in rgba_samples((height, width)).items()]
    setting: Row = {"size": size, "sdk": version("label-studio-sdk"), "repeats": repeats}
    report("rle", setting, rows, device="cpu", as_json=as_json, out=out)
    if not all(row["equal"] for row in rows):
        click.secho("error: what we write or read is not what label-studio-sdk does", fg="red", err=True)
        sys.exit(1)


def _row(name: str, picture: "NDArray[np.uint8]", repeats: int) -> Row:
    from label_studio_sdk.converter.brush import decode_rle, encode_rle, mask2rle

    size = (picture.shape[0], picture.shape[1])
    mask = picture[..., 3] >= 128
    grey = np.ascontiguousarray(picture[..., 3])
    painted = bool((picture[..., 0] != grey).any())
    found: dict[str, Any] = {}

    def encode() -> None:
        found["ours"] = encode_brush_rle(picture) if painted else mask_to_brush_rle(mask)

    def encode_sdk() -> None:
        found["sdk"] = encode_rle(picture.ravel()) if painted else mask2rle(grey)

    def decode() -> None:
        found["mask"] = brush_rle_to_mask(found["sdk"], size)

    def decode_sdk() -> None:
        found["sdk_mask"] = decode_rle(found["sdk"]).reshape(*size, 4)[:, :, 3] >= 128

    writing = time_interleaved({"ours": encode, "sdk": encode_sdk}, repeats, "cpu")
    reading = time_interleaved({"ours": decode, "sdk": decode_sdk}, repeats, "cpu")
    equal = found["ours"] == found["sdk"] and np.array_equal(found["mask"], found["sdk_mask"])
    return {
        "mask": name,
        "bytes": len(found["ours"]),
        "equal": bool(equal and np.array_equal(found["mask"], mask)),
        "encode_ms": 1000 * writing["ours"],
        "encode_ms_sdk": 1000 * writing["sdk"],
        "encode_times_faster": writing["sdk"] / writing["ours"],
        "decode_ms": 1000 * reading["ours"],
        "decode_ms_sdk": 1000 * reading["sdk"],
        "decode_times_faster": reading["sdk"] / reading["ours"],
    }
