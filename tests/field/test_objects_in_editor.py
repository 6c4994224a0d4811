"""Objects in the real editor of Label Studio: a photo of coins has a region for each, in every control, and what
is submitted is read back as the same objects.

`--pictures FOLDER` keeps the editor as a picture, which docs/labelling.md shows.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from backend.demo.correcting import coin_photo
from lab.editor import Editor
from lasagna.assistant.objects import tell_apart
from lasagna.formats.annotations import regions_to_objects
from lasagna.formats.label_studio import segmentation_to_label_studio
from lasagna.formats.regions import read_regions
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.segmentation import ClassAnswer, Segmentation
from lasagna.masks.splitting import parts_of

pytestmark = [pytest.mark.label_studio, pytest.mark.browser, pytest.mark.slow]

LABELS = '<Label value="coin" background="#d55e00"/><Label value="table" objects="false" background="#0072b2"/>'
CONFIG = (
    '<View><Image name="image" value="$image"/>'
    f'<BrushLabels name="brush" toName="image" opacity="0.5">{LABELS}</BrushLabels>'
    '<RectangleLabels name="box" toName="image"><Label value="coin" background="#d55e00"/></RectangleLabels></View>'
)


def test_a_region_for_each_coin(chromium, label_studio, tmp_path: Path, pytestconfig) -> None:
    photo, exact = (each[85:235, 140:384] for each in coin_photo())
    coins = binary_dilation(exact, iterations=8)  # masks of a model are generous: most of these coins touch
    assert parts_of(coins).max() == 4
    Image.fromarray(np.stack([photo] * 3, -1)).save(tmp_path / "coins.png")
    [plan] = parse_label_config(CONFIG).images
    plain = Segmentation(coins.shape, (ClassAnswer("coin", 0.9, coins), ClassAnswer("table", 0.8, ~coins)))
    answer = tell_apart(plain, plan.classes)
    told = answer["coin"].objects
    assert told is not None
    assert answer["table"].objects is None
    assert len(told) == 8

    api = label_studio.api()
    project = api.create_project("Coins", CONFIG)
    [task] = api.upload(project, [tmp_path / "coins.png"])
    api.create_prediction(task, segmentation_to_label_studio(answer, plan, "coins", "coins-1"))
    chromium.set_script_timeout(120)  # the editor decodes all brush masks in one script
    editor = Editor(chromium, label_studio)
    shown = Counter((kind, *labels) for kind, labels, _ in editor.open(project, task))
    assert shown == {("brushregion", "coin"): 8, ("rectangleregion", "coin"): 8, ("brushregion", "table"): 1}
    if pictures := pytestconfig.getoption("--pictures"):
        editor.picture(Path(pictures) / "labelling-objects.png", 860, 1000)

    assert len(editor.work_on(project, task)) == 17
    editor.submit()
    assert editor.errors() == []
    [annotation] = api.open_task(project, task)["annotations"]
    [regions] = read_regions(annotation["result"], [plan]).of_image
    found = dict(regions_to_objects(((r.labels[0].value, r) for r in regions), coins.shape))["coin"]
    assert len(found) == 8, "the box of a coin and its brush region are one object"
    for each, other in zip(found, told, strict=True):
        common, either = (each.mask & other.mask).sum(), (each.mask | other.mask).sum()
        assert common / either > 0.97, "the editor draws a mask with soft edges"
