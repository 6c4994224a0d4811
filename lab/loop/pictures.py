"""The pictures of docs/loop.md, from the folder of a finished benchmark of the learning loop.

    lasagna bench loop --data cwfid --corrections 16 --out runs/loop
    python -m lab.loop.pictures runs/loop docs

Its Label Studio is started again, and a real browser takes `loop-before.png` and `loop-after.png`: an untouched photo
in the editor, with the first and with the newest of its predictions. It is the photo whose prediction changed by the
median number of pixels, so neither the best nor the worst. `effort.png` and `gate.png` are the page of edit effort, and
the gate's report of the first round.

Photos are hidden, since a data set's licence seldom allows to publish them; `--photos` shows them.
"""

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from backend.demo.local_label_studio import LocalLabelStudio, Projects
from backend.effort.measure import edit_effort
from lab.editor import Editor, open_chromium
from lasagna.formats.annotations import region_to_mask
from lasagna.formats.regions import read_regions
from lasagna.labels.configuration import parse_label_config
from lasagna.settings import Settings

_COLOURS = 128
"""Colours of a picture's palette, with which an editor's screenshot takes a quarter of the bytes."""

_HIDE = """
document.head.insertAdjacentHTML('beforeend', '<style>img {visibility: hidden !important}</style>');
const below = image => !image.name() && !image.getParent().name();
Konva.stages.forEach(stage => stage.find('Image').filter(below).forEach(image => image.hide()));
"""
"""The list's small pictures, and the photo that the editor draws below the regions, which are in named groups."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, help="what `lasagna bench loop --out` wrote")
    parser.add_argument("docs", type=Path, help="folder for the pictures")
    parser.add_argument("--photos", action="store_true", help="show the photos too")
    given = parser.parse_args()
    folder = given.bench.resolve() / "state" / "label-studio"
    if not folder.is_dir():
        parser.error(f"{folder} is not there; give the folder of `lasagna bench loop --out`")
    with tempfile.TemporaryDirectory() as profile, LocalLabelStudio(Settings.load(), folder) as label_studio:
        api = label_studio.wait().api()
        browser = open_chromium(Path(profile))
        try:
            project = max(int(found["id"]) for found in api.projects("bench loop"))
            task, before, after = _middle_change(api, project)
            editor = Editor(browser, label_studio)
            for name, prediction in (("before", before), ("after", after)):
                editor.open(project, task, prediction)
                if not given.photos:
                    browser.execute_script(_HIDE)
                _save(browser.get_screenshot_as_png(), given.docs / f"loop-{name}.png")
            for name, page in (("effort", "effort.html"), ("gate", "gate-1.html")):
                browser.get((given.bench.resolve() / page).as_uri())
                _save(browser.get_screenshot_as_png(), given.docs / f"{name}.png")
        finally:
            browser.quit()


def _middle_change(api: Projects, project: int) -> tuple[int, int, int]:
    """A task without an annotation, its oldest prediction and its newest."""
    config = parse_label_config(str(api.project(project)["label_config"]))
    found = []
    for task in api.tasks(project):
        shown = sorted(api.predictions(task.id), key=lambda one: int(one["id"]))
        if len(shown) > 1 and not api.open_task(project, task.id)["annotations"]:
            found.append((_changed(shown[0], shown[-1], config), task.id, int(shown[0]["id"]), int(shown[-1]["id"])))
    if not found:
        raise SystemExit("no untouched photo has predictions of two versions: nothing was promoted")
    _, task_id, before, after = sorted(found)[len(found) // 2]
    return task_id, before, after


def _changed(before: dict[str, Any], after: dict[str, Any], config: Any) -> float:
    """Share of the photo that the two predictions draw differently, summed over labels."""
    masks: list[dict[str, Any]] = []
    pixels = 1
    for prediction in (before, after):
        masks.append({})
        [regions] = read_regions(prediction["result"], config.images).of_image
        for region in regions:
            if region.kind == "brush" and region.labels and region.size:
                pixels = region.size[0] * region.size[1]
                masks[-1][region.labels[0].value] = region_to_mask(region, region.size)
    return edit_effort(masks[0], masks[1]).changed / pixels


def _save(png: bytes, target: Path) -> None:
    Image.open(io.BytesIO(png)).convert("RGB").quantize(_COLOURS).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
