"""`lasagna predictions` against the real Label Studio."""

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from backend.commands.predictions import predictions
from backend.queue.store import Store
from lasagna.errors import ConfigError
from tests.backend.backend_helpers import CONFIG, asked

pytestmark = pytest.mark.label_studio

OLD, NEW, OTHER = "tiny-1", asked("tiny-2"), "yolo-v8"


@pytest.fixture(autouse=True)
def environment(label_studio: Any, redis_db: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASAGNA_REDIS_URL", redis_db)
    monkeypatch.setenv("LASAGNA_LABEL_STUDIO_URL", label_studio.url)
    monkeypatch.setenv("LASAGNA_LABEL_STUDIO_TOKEN", label_studio.login.token)
    store.publish_model({"version": "tiny-2"})


@pytest.fixture
def project(label_studio: Any) -> int:
    """Four tasks with predictions of three versions each."""
    api = label_studio.api()
    number = api.create_project("prune", CONFIG)
    given = [{"model_version": version, "result": []} for version in (OLD, NEW, OTHER)]
    api.import_tasks(number, [{"data": {"image": f"/{i}.png"}, "predictions": given} for i in range(4)])
    return int(number)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(predictions, arguments)


def versions(label_studio: Any, project: int) -> list[list[str]]:
    api = label_studio.api()
    return [sorted(p["model_version"] for p in api.predictions(task.id)) for task in api.tasks(project)]


def test_the_versions_are_counted(project: int) -> None:
    assert json.loads(run("list", str(project), "--json").output) == {OLD: 4, NEW: 4, OTHER: 4}
    assert f"       4  {OLD}\n" in run("list", str(project)).output


def test_a_former_version_goes(label_studio: Any, project: int) -> None:
    looked = run("prune", str(project), "--version", OLD, "--dry-run")
    assert "of 4 tasks would be removed" in looked.output
    assert versions(label_studio, project) == [[OLD, NEW, OTHER]] * 4
    assert "4 predictions of 4 tasks removed" in run("prune", str(project), "--version", OLD).output
    assert versions(label_studio, project) == [[NEW, OTHER]] * 4
    counted = label_studio.api()._object("GET", "/api/tasks/", params={"project": project, "fields": "task_only"})
    assert {task["total_predictions"] for task in counted["tasks"]} == {2}


def test_what_an_annotator_was_shown_stays(label_studio: Any, project: int) -> None:
    api = label_studio.api()
    first = next(iter(api.tasks(project))).id
    shown = next(p["id"] for p in api.predictions(first) if p["model_version"] == OLD)
    api.create_annotation(first, [], lead_time=1.0, prediction=shown)
    done = run("prune", str(project), "--version", OLD, "--version", OTHER)
    assert "6 predictions of 3 tasks removed; 1 annotated tasks keep theirs" in done.output
    assert versions(label_studio, project) == [[OLD, NEW, OTHER], [NEW], [NEW], [NEW]]
    assert api.open_task(project, first)["annotations"][0]["parent_prediction"] == shown


def test_the_version_that_serves_stays(label_studio: Any, project: int) -> None:
    done = run("prune", str(project), "--version", OLD, "--version", NEW)
    assert isinstance(done.exception, ConfigError)
    assert f"{NEW} serves project {project}" in str(done.exception)
    assert versions(label_studio, project) == [[OLD, NEW, OTHER]] * 4


def test_a_version_stands_for_all_its_questions(label_studio: Any, project: int) -> None:
    """But for what serves, which carries the question of today."""
    before = "tiny-2~000000"
    api = label_studio.api()
    for task in api.tasks(project):
        api.create_prediction(task.id, {"model_version": before, "result": [], "score": 0.5})
    assert "4 predictions of 4 tasks removed" in run("prune", str(project), "--version", "tiny-2").output
    assert versions(label_studio, project) == [[OLD, NEW, OTHER]] * 4
    again = run("prune", str(project), "--version", "tiny-2")
    assert "serves project" in str(again.exception)


def test_a_version_that_is_not_there_is_named(project: int) -> None:
    done = run("prune", str(project), "--version", "tiny-0")
    assert isinstance(done.exception, ConfigError)
    assert f"no predictions of tiny-0; it has some of: {OLD}, {NEW}, {OTHER}" in str(done.exception)
