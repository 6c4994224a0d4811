"""A project with five labels that the shipped model was taught and three that it was not, in a real Label Studio: what
the annotator sees, and where the three are listed.

`--pictures FOLDER` keeps the editor and the status page as pictures.
"""

from pathlib import Path
from typing import Any

import pytest
import requests

from lab.editor import Editor
from lasagna.formats.regions import read_regions
from lasagna.labels.classes import make_label_config
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.segmentation import ClassQuery

pytestmark = [pytest.mark.label_studio, pytest.mark.browser]

KNOWN = ["sky", "person", "car", "tree", "cat"]
UNKNOWN = ["launch pad", "spacesuit", "gantry"]
NEVER = f"never taught: {', '.join(UNKNOWN)}. Draw these; the model learns from your corrections."


def test_the_annotator_draws_what_the_model_was_never_taught(
    chromium: Any,
    label_studio: Any,
    start_backend: Any,
    photos: dict[str, Path],
    eventually: Any,
    pytestconfig: pytest.Config,
) -> None:
    backend, api, editor = start_backend("nano"), label_studio.api(), Editor(chromium, label_studio)
    xml = make_label_config([ClassQuery(name) for name in [*KNOWN, *UNKNOWN]])
    [image] = parse_label_config(xml).images
    project = api.create_project("Five known labels, three unknown", xml)
    tasks = dict(zip(("rocket", "cat"), api.upload(project, [photos["rocket"], photos["cat"]]), strict=True))
    api.connect_backend(project, backend.url)
    for task in tasks.values():
        api.open_task(project, task)
    for task in tasks.values():
        [prediction] = eventually(lambda task=task: api.predictions(task), 120, "the prediction")
        [regions] = read_regions(prediction["result"], [image]).of_image
        drawn = {label.value for region in regions for label in region.labels}
        assert drawn <= set(KNOWN)
        [absent] = [one for one in prediction["result"] if one["type"] == "choices"]
        assert set(absent["value"]["choices"]) == set(KNOWN) - drawn, "each known label is drawn or absent, no other is"
        assert absent["meta"] == {"text": [f"not known to the model, and not looked for: {', '.join(UNKNOWN)}"]}

    shown = editor.work_on(project, tasks["rocket"])
    assert {name for _, labels, _, _ in shown for name in labels} <= set(KNOWN)
    pictures = pytestconfig.getoption("--pictures")
    if pictures:
        editor.picture(Path(pictures) / "unknown-labels.png", 760, 1000)
    editor.choose("launch pad")
    editor.drag([(0.7, 0.85), (0.8, 0.9), (0.85, 0.85)])
    editor.submit()
    assert editor.errors() == []
    [annotation] = api.open_task(project, tasks["rocket"])["annotations"]
    drawn_by_hand = [one["value"].get("brushlabels") for one in annotation["result"] if one["origin"] == "manual"]
    assert drawn_by_hand == [["launch pad"]]

    page = " ".join(requests.get(f"{backend.url}/status", timeout=30).text.split())
    assert NEVER in page
    report = " ".join(requests.get(f"{backend.url}/report/{project}", timeout=60).text.split())
    assert "was never taught, and in no figure of it is: launch pad (drawn in 1 photo)" in report
    if pictures:
        editor.browser.get(f"{backend.url}/status")
        editor.picture(Path(pictures) / "unknown-labels-status.png", 760, 1000)
