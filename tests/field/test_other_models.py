"""Models of other makers in a real Label Studio, through the real queue: the same project, answered by each."""

from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner

from backend.loop.trainings import Trainings
from backend.queue.store import Store, connect
from backend.studio.project_id import project_uid
from lab.bench.peer_models import write_model
from lasagna.checkpoint.folder import Calibration, write_calibration
from lasagna.commands.cli import main
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


def test_start_training_of_another_makers_model_is_refused_in_words(
    label_studio: Any, start_backend: Any, photos: dict[str, Path], eventually: Any, tmp_path: Path
) -> None:
    """The real button: nothing is trained, it is said where one looks, and Label Studio goes on asking."""
    backend, api = start_backend(model_of("clipseg", tmp_path / "clipseg")), label_studio.api()
    project = api.create_project("Start training", make_label_config([ClassQuery(name) for name in LABELS]))
    connection = api.connect_backend(project, backend.url)
    api.start_training(connection)
    store = Store(connect(backend.redis_url))
    trainings, uid = Trainings(store), project_uid(api.project(project))
    found = eventually(lambda: (known := trainings.of(uid)).get("outcome") and known, 120, "the refusal")
    assert (found["outcome"], found["state"]) == ("refused", "idle")
    assert found["summary"].startswith(f"{backend.model_version} serves the project. It is another maker's model")
    shown = CliRunner().invoke(main, ["jobs", "--redis-url", backend.redis_url])
    assert f"no fine-tune: {backend.model_version} serves the project" in " ".join(shown.output.split())
    [task] = api.upload(project, [photos["person"]])
    api.open_task(project, task)
    eventually(lambda: api.predictions(task), 120, "a prediction after the refusal")
    store.redis.close()
