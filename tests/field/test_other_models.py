"""Models of other makers in a real Label Studio, through the real queue: the same project, answered by each."""

from pathlib import Path
from typing import Any

import pytest
import requests

from lab.bench.peer_models import write_model
from lasagna.checkpoint.folder import Calibration, write_calibration
from lasagna.labels.classes import make_label_config
from lasagna.masks.segmentation import ClassQuery

pytestmark = pytest.mark.label_studio
LABELS = ("sky", "person", "car", "kitchen")
LISTED = ("sky", "person", "car")
"""Those that the closed list has, too."""


def model_of(kind: str, folder: Path) -> str:
    """nano, or a small model with random weights that calls everything present."""
    if kind == "nano":
        return kind
    write_model(kind, folder)
    write_calibration(folder, Calibration(offset=-30.0))
    return str(folder)


@pytest.mark.parametrize("kind", ["nano", "sam3", "eomt", "clipseg"])
def test_one_project_answered_by_each(
    kind: str, label_studio: Any, start_backend: Any, photos: dict[str, Path], eventually: Any, tmp_path: Path
) -> None:
    backend, api = start_backend(model_of(kind, tmp_path / kind)), label_studio.api()
    assert backend.model_version.startswith(f"{kind}-")
    project = api.create_project(f"Answered by {kind}", make_label_config([ClassQuery(name) for name in LABELS]))
    [task] = api.upload(project, [photos["person"]])
    api.connect_backend(project, backend.url)
    api.open_task(project, task)
    [prediction] = eventually(lambda: api.predictions(task), 120, "the prediction")
    assert prediction["model_version"].startswith(backend.model_version)
    drawn = {one["value"]["brushlabels"][0] for one in prediction["result"] if one["type"] == "brushlabels"}
    [absent] = [one for one in prediction["result"] if one["type"] == "choices"] or [{"value": {"choices": []}}]
    said = drawn | set(absent["value"]["choices"])
    if kind == "nano":
        assert "person" in drawn
    else:
        assert not absent["value"]["choices"]
        assert said <= set(LISTED if kind == "eomt" else LABELS)
        assert len(said) >= 1
    page = requests.get(f"{backend.url}/status", timeout=30).text
    assert ("not in its list: kitchen. Draw it by hand." in " ".join(page.split())) == (kind == "eomt")
