"""The simulated annotator against the real Label Studio: what it submits is what a person's editor would."""

from typing import Any

import numpy as np
import pytest

from lab.loop.annotator import Habits, SimulatedAnnotator
from lasagna.errors import ConfigError
from lasagna.labels.classes import make_label_config
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.conversions import brush_rle_to_mask, mask_to_brush_rle
from lasagna.masks.image import load_image
from lasagna.masks.segmentation import ClassQuery

NAMES = ("right", "wrong", "spurious", "missed", "absent")


@pytest.mark.label_studio
def test_regions_are_kept_changed_added_and_deleted(label_studio: Any, photos: Any) -> None:
    api = label_studio.api()
    xml = make_label_config([ClassQuery(name) for name in NAMES])
    project = api.create_project("annotator", xml)
    [task] = api.upload(project, [photos["cat"]])
    width, height = load_image(photos["cat"]).size
    shape = (height, width)

    def box(x0: int, x1: int) -> Any:
        mask = np.zeros(shape, bool)
        mask[10:60, x0:x1] = True
        return mask

    def region(name: str, mask: Any) -> dict[str, Any]:
        value = {"format": "rle", "rle": mask_to_brush_rle(mask), "brushlabels": [name]}
        return {"id": f"id-{name}", "from_name": "brush", "to_name": "image", "type": "brushlabels", "score": 0.9,
                "original_width": width, "original_height": height, "image_rotation": 0, "value": value}  # fmt: skip

    shown = [region("right", box(0, 100)), region("wrong", box(0, 100)), region("spurious", box(0, 100))]
    prediction = api.create_prediction(task, {"model_version": "v1", "score": 0.5, "result": shown})
    truth = {"right": box(0, 98), "wrong": box(0, 50), "missed": box(100, 120), "absent": np.zeros(shape, bool)}

    annotator = SimulatedAnnotator(api, parse_label_config(xml), Habits(accept=0.9))
    done = annotator.correct(task, truth)

    assert (done.accepted, done.changed, done.added, done.deleted) == (1, 1, 1, 1)
    [annotation] = api.open_task(project, task)["annotations"]
    assert annotation["id"] == done.annotation
    assert annotation["parent_prediction"] == prediction
    assert annotation["lead_time"] == Habits().open_seconds + 25 + 15 + 2
    drawn = {one["value"]["brushlabels"][0]: one for one in annotation["result"] if one["type"] == "brushlabels"}
    origins = {name: one["origin"] for name, one in drawn.items()}
    assert origins == {"right": "prediction", "wrong": "prediction-changed", "missed": "manual"}
    assert drawn["right"]["id"] == "id-right"
    assert drawn["right"]["value"]["rle"] == shown[0]["value"]["rle"], "what is good enough is not touched"
    for name in ("wrong", "missed"):
        assert (brush_rle_to_mask(drawn[name]["value"]["rle"], shape) == truth[name]).all()
    [choices] = [one for one in annotation["result"] if one["type"] == "choices"]
    assert choices["value"]["choices"] == ["spurious", "absent"]


def test_a_class_without_a_brush() -> None:
    xml = """<View><Image name="image" value="$image"/>
      <PolygonLabels name="p" toName="image"><Label value="cat"/></PolygonLabels></View>"""
    with pytest.raises(ConfigError, match="'cat' has no BrushLabels"):
        SimulatedAnnotator(None, parse_label_config(xml))  # type: ignore[arg-type]
