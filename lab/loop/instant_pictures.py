"""The pictures of the instant head in docs/loop.md and docs/operations.md, from a real Label Studio and a real browser.

    python -m lab.loop.instant_pictures docs

Twenty windows of the left two thirds of scikit-image's photo of coins are corrected one by one. A window of the right
third, which none of them shows, is opened in the editor before, and after 3, 10 and 20 corrections: each time as a task
of its own, whose prediction Label Studio asks for when it is opened. `pictures/instant-N.png` are what the editor shows
of it, `status.png` is the status page in the end, while the rest of the
project is pre-labelled.
"""

import argparse
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import requests
from PIL import Image
from rich.console import Console

from backend.demo.correcting import CONFIG, CoinPiece, coin_photo, cut_coins, drawn_regions, seconds_until_learnt
from lab.editor import Editor, open_chromium
from lab.loop.product import running_product
from lasagna.errors import ServiceError
from lasagna.progress import progress_bar

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from backend.demo.parts import Demo

SHOWN_AFTER = (0, 3, 10, 20)
_HIGH, _WIDE = 150, 128
_TOP, _LEFT = 75, 256
"""Of the window that is shown: no corrected one reaches so far to the right."""
_COLOURS = 64
_WIDTH = 320
_STATUS_WIDTH = 1280


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docs", type=Path, help="folder for status.png, with a folder pictures")
    docs = parser.parse_args().docs
    (docs / "pictures").mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as place, running_product(None, None, console) as parts:
        corrected, shown = windows(Path(place))
        project = parts.create_project(CONFIG, [*(piece.path for piece in corrected), *shown])
        browser = open_chromium(Path(place) / "chromium")
        try:
            editor = Editor(browser, parts.label_studio)
            with progress_bar(console, "Correcting", len(corrected)) as advance:
                for number in _corrections(parts, project, corrected):
                    if number in SHOWN_AFTER:
                        task = parts.tasks[len(corrected) + SHOWN_AFTER.index(number)]
                        editor.open(project, task)
                        picture = Image.fromarray(editor.image_pixels())
                        height = round(_WIDTH / picture.width * picture.height)
                        save(picture.resize((_WIDTH, height)), docs / "pictures" / f"instant-{number}.png")
                    if number:
                        advance()
            requests.post(f"{parts.backend_url}/jobs", json={"project": project}, timeout=30).raise_for_status()
            save(_status_page(browser, parts.backend_url), docs / "status.png")
        finally:
            browser.quit()


def windows(folder: Path) -> tuple[list[CoinPiece], list[Path]]:
    """The windows that are corrected, in a mixed order, and one file of the window that is shown for each time."""
    photo, coins = coin_photo()
    tops = np.linspace(0, photo.shape[0] - _HIGH, 4).astype(int)
    lefts = np.linspace(0, _LEFT - _WIDE, 5).astype(int)
    places = [(int(top), int(left)) for top in tops for left in lefts]
    pieces = []
    for number, index in enumerate(np.random.default_rng(0).permutation(len(places))):
        top, left = places[index]
        part = np.s_[top : top + _HIGH, left : left + _WIDE]
        pieces.append(cut_coins(photo, coins, part, folder / f"coins-{number + 1:02}.png"))
    part = np.s_[_TOP : _TOP + _HIGH, _LEFT : _LEFT + _WIDE]
    shown = [cut_coins(photo, coins, part, folder / f"shown-{number:02}.png").path for number in SHOWN_AFTER]
    return pieces, shown


def _corrections(parts: "Demo", project: int, pieces: list[CoinPiece]) -> Iterator[int]:
    """Corrects one after the other; gives the number of corrections that the serving head knows, 0 first."""
    yield 0
    for number, (piece, task) in enumerate(zip(pieces, parts.tasks, strict=False), 1):
        before = parts.serving(project)
        parts.api.create_annotation(task, drawn_regions(piece.truth, task), lead_time=5.0)
        if seconds_until_learnt(parts, project, before) is None:
            raise ServiceError(f"nothing was learnt from task {task}; see {parts.folder}/worker.log")
        yield number


def _status_page(browser: "Chrome", address: str) -> Image.Image:
    """The whole page."""
    browser.set_window_size(_STATUS_WIDTH, 900)
    browser.get(address + "/status")
    height = int(browser.execute_script("return document.documentElement.scrollHeight"))
    browser.set_window_size(_STATUS_WIDTH, height + 160)  # the window's frame takes some of it
    picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    return picture.crop((0, 0, picture.width, min(picture.height, height)))


def save(picture: Image.Image, target: Path) -> None:
    """With a palette, which takes a quarter of the bytes."""
    picture.convert("RGB").quantize(_COLOURS).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
