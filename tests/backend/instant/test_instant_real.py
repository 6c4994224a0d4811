"""From a submitted annotation to the next opened task, in a real Label Studio with the real processes."""

from pathlib import Path
from typing import Any

import pytest
import requests

from backend.studio.client import LabelStudio
from backend.studio.version_names import base_version, without_question
from lasagna.checkpoint.folder import checkpoint_version
from tests.backend.backend_helpers import Backend, wait_until
from tests.backend.loop.loop_helpers import rectangle, square

pytestmark = pytest.mark.label_studio

CONFIG = """<View><Image name="image" value="$image"/>
<RectangleLabels name="rect" toName="image"><Label value="Cat"/><Label value="Sky"/></RectangleLabels></View>"""


def serving(backend: Backend, project: int) -> str:
    """The version that the backend would answer with now."""
    return str(requests.get(f"{backend.url}/versions?project={project}", timeout=10).json()["versions"][0])


@pytest.fixture
def running(label_studio: Any, backend: Backend) -> Backend:
    backend.environ |= {
        "LASAGNA_LABEL_STUDIO_URL": label_studio.url,
        "LASAGNA_LABEL_STUDIO_TOKEN": label_studio.login.token,
        "LASAGNA_TRAIN_WHEN": "never",
    }
    backend.serve()
    backend.worker()
    return backend


def test_the_next_opened_task_has_the_newest_head(
    label_studio: Any, running: Backend, tmp_path: Path, checkpoint: Path
) -> None:
    api = label_studio.api()
    client = LabelStudio(label_studio.url, label_studio.login.token)
    project = api.create_project("instant", CONFIG)
    photos = [tmp_path / f"{number}.png" for number in range(9)]
    for number, path in enumerate(photos):
        path.write_bytes(square(number)[0])
    tasks = api.upload(project, photos)
    old = client.create_prediction(tasks[6], {"model_version": checkpoint_version(checkpoint), "result": []})
    foreign = client.create_prediction(tasks[7], {"model_version": "yolo-v8", "result": []})
    api.connect_backend(project, running.url)

    def version_of(task: int) -> str:
        found = api.open_task(project, task)["predictions"]
        return without_question(max(found, key=lambda p: p["id"])["model_version"]) if found else ""

    assert version_of(tasks[0]) == checkpoint_version(checkpoint)
    heads: list[str] = []
    for number in range(4):
        api.create_annotation(tasks[number], [rectangle(square(number)[1])], lead_time=3.0)

        def newer() -> str:
            version = serving(running, project)
            return version if "+" in version and version not in heads else ""

        heads.append(wait_until(newer, 60, "a newer head"))
    assert len(set(heads)) == 4
    assert version_of(tasks[4]) == heads[-1]
    # the one that was pre-labelled before is renewed, the other model's prediction stays
    renewed = wait_until(
        lambda: [p for p in api.predictions(tasks[6]) if without_question(p["model_version"]) == heads[-1]],
        60,
        "the renewed prediction",
    )
    assert old not in {p["id"] for p in api.predictions(tasks[6])}
    assert len(renewed) == 1
    assert [p["id"] for p in api.predictions(tasks[7])] == [foreign]
    # taking the last annotation away takes its correction away
    annotation = api.open_task(project, tasks[3])["annotations"][0]["id"]
    api._request("DELETE", f"/api/annotations/{annotation}/")
    own = checkpoint_version(checkpoint)

    def without() -> str:
        version = serving(running, project)
        return version if version not in heads and base_version(version) == own else ""

    after = wait_until(without, 60, "a head without it")
    assert "+h" in after
