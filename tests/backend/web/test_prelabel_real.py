"""`lasagna prelabel` on a project of a real Label Studio: tabs, people's work, and being killed."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backend.commands.prelabel import prelabel
from backend.queue.store import Store
from backend.studio.client import LabelStudio
from lasagna.checkpoint.folder import checkpoint_version
from lasagna.errors import ConfigError
from tests.backend.backend_helpers import Backend, asked, png, wait_until

pytestmark = pytest.mark.label_studio

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="b" toName="image"><Label value="Cat"/><Label value="Sky"/></BrushLabels></View>"""


@pytest.fixture
def environment(label_studio: Any, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Backend:
    backend.environ |= {
        "LASAGNA_LABEL_STUDIO_URL": label_studio.url,
        "LASAGNA_LABEL_STUDIO_TOKEN": label_studio.login.token,
        "LASAGNA_BATCH_SIZE": "1",
    }
    for name, value in backend.environ.items():
        monkeypatch.setenv(name, value)
    return backend


def photos(folder: Path, count: int) -> list[Path]:
    found = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(found):
        path.write_bytes(png(number))
    return found


def test_tabs(label_studio: Any, environment: Backend, tmp_path: Path) -> None:
    api = label_studio.api()
    project = api.create_project("tabs", CONFIG)
    tasks = api.upload(project, photos(tmp_path, 4))
    above = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": tasks[1]}
    data = {"title": "late ones", "filters": {"conjunction": "and", "items": [above]}}
    tab = api._json("POST", "/api/dm/views/", json={"project": project, "data": data})["id"]
    everything = api._json("POST", "/api/dm/views/", json={"project": project, "data": {"title": "Default"}})["id"]
    client = LabelStudio(label_studio.url, label_studio.login.token)
    assert client.tabs(project) == {tab: "late ones", everything: "Default"}
    assert client.tasks_in_tab(project, tab) == set(tasks[2:])
    assert client.tasks_in_tab(project, everything, page_size=3) == set(tasks)
    with pytest.raises(ConfigError, match=f"no tab 12345; it has {tab} \\(late ones\\), {everything} "):
        client.tasks_in_tab(project, 12345)

    client.create_prediction(tasks[0], {"model_version": "other-1", "result": []})
    client.create_prediction(tasks[3], {"model_version": "other-1", "result": []})
    result = CliRunner().invoke(prelabel, [str(project), "--dry-run", "--json", "--tab", str(tab)])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (plan["total"], plan["missing"], plan["outdated"]) == (2, 1, 1)


MANY = 80
"""Tasks of which not all are predicted before the first is seen to be."""


def test_killed_twice(label_studio: Any, environment: Backend, store: Store, tmp_path: Path, checkpoint: Path) -> None:
    """The command, with the worker and without it, in the midst of the tasks; what people did stays as it was."""
    api = label_studio.api()
    project = api.create_project("killed", CONFIG)
    tasks = api.upload(project, photos(tmp_path, MANY + 1))
    shown = api.create_prediction(tasks[0], {"model_version": "other-1", "result": [], "score": 0.25})
    api.create_annotation(tasks[0], [], lead_time=3.0, prediction=shown)
    before = api.open_task(project, tasks[0])
    worker = environment.run(
        "worker", "--queues", "interactive,predict", "--batch-size", "1", wait_for="waiting for jobs"
    )
    command = environment.run("prelabel", str(project), wait_for="tasks, model")
    wait_until(lambda: store.counts()["done"] >= 1, 60, "a prediction")
    command.kill()
    worker.kill()
    assert store.counts()["done"] < MANY
    command = environment.run("prelabel", str(project), wait_for="tasks, model")
    command.kill()
    environment.run("worker", "--queues", "interactive,predict", wait_for="waiting for jobs")
    result = CliRunner().invoke(prelabel, [str(project), "--json"])
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout)
    assert (outcome["annotated"], outcome["failed"]) == (1, {})
    assert outcome["done"] + outcome["had_one"] == MANY
    version = asked(checkpoint_version(checkpoint), CONFIG)
    assert [[p["model_version"] for p in api.predictions(task)] for task in tasks] == [["other-1"], *[[version]] * MANY]
    after = api.open_task(project, tasks[0])
    for annotation in (*before["annotations"], *after["annotations"]):
        del annotation["created_ago"]  # "1 minute"
    assert after["annotations"] == before["annotations"]
    assert [p["id"] for p in after["predictions"]] == [shown]
    again = CliRunner().invoke(prelabel, [str(project), "--json"])
    assert json.loads(again.stdout)["had_one"] == MANY
