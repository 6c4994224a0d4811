"""Fields of tasks that tell of predictions, in a real Label Studio: the data manager filters and sorts tasks by them,
and nothing else of a task, a prediction or an annotation changes."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from selenium.webdriver.support.ui import WebDriverWait

from backend.commands.predictions import predictions
from backend.commands.prelabel import prelabel
from backend.studio.data_fields import NAMES, fields_of
from lab.editor import Editor
from lasagna.errors import ConfigError

pytestmark = pytest.mark.label_studio

CONFIG = """<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">
    <Label value="sky"/><Label value="cat"/></BrushLabels></View>"""
VERSION = "nano-ec805b63~3f2a9c"


def region(label: str, score: float, number: int) -> dict[str, Any]:
    value = {"x": 1.0, "y": 1.0, "width": 5.0, "height": 5.0, "rotation": 0, "rectanglelabels": [label]}
    named = {"id": f"{label}{number}", "from_name": "rect", "to_name": "image", "type": "rectanglelabels"}
    return {**named, "original_width": 100, "original_height": 80, "score": score, "value": value}


def prediction(score: float, *regions: dict[str, Any], version: str = VERSION) -> dict[str, Any]:
    return {"model_version": version, "score": score, "result": list(regions)}


GIVEN = [
    prediction(0.91234, region("sky", 0.97, 0)),
    prediction(0.2, region("sky", 0.8, 0), region("cat", 0.51, 1), region("cat", 0.6, 2)),
    prediction(0.5),
]
EXPECTED = [(0.91, 1, 0.97, "sky"), (0.2, 3, 0.51, "sky, cat"), (0.5, 0, 1, "")]


@pytest.fixture(autouse=True)
def environment(label_studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASAGNA_LABEL_STUDIO_URL", label_studio.url)
    monkeypatch.setenv("LASAGNA_LABEL_STUDIO_TOKEN", label_studio.login.token)


@pytest.fixture
def project(label_studio: Any) -> int:
    """Three tasks with a prediction of ours, and an older one; one with another model's alone."""
    api = label_studio.api()
    number = api.create_project("fields", CONFIG)
    older = prediction(0.1, region("cat", 0.3, 0), version="nano-ec805b63~000000")
    tasks = [
        {"data": {"image": f"/{i}.png", "site": "A"}, "predictions": [older, given]} for i, given in enumerate(GIVEN)
    ]
    theirs = {"data": {"image": "/3.png", "site": "B"}, "predictions": [prediction(0.3, version="yolo-v8")]}
    api.import_tasks(number, [*tasks, theirs])
    return int(number)


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(predictions, ["fields", *map(str, arguments)])


def stored(label_studio: Any, project: int) -> list[tuple[dict[str, Any], str]]:
    """Data and `updated_at` of each task as they stand in the database."""
    with sqlite3.connect(label_studio.service.log.parent / "label_studio.sqlite3") as database:
        rows = database.execute("SELECT data, updated_at FROM task WHERE project_id = ? ORDER BY id", (project,))
        return [(json.loads(data), at) for data, at in rows]


def asked(api: Any, project: int, **query: Any) -> list[str]:
    """The images of the tasks, as the data manager asks for them in a tab."""
    params = {"project": project, "fields": "task_only", "query": json.dumps(query)}
    return [task["data"]["image"] for task in api._object("GET", "/api/tasks/", params=params)["tasks"]]


def where(name: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    item = {"filter": f"filter:tasks:data.{name}", "operator": operator, "type": kind, "value": value}
    return {"filters": {"conjunction": "and", "items": [item]}}


def columns(api: Any, project: int) -> set[str]:
    found = api._object("GET", "/api/dm/columns/", params={"project": project})["columns"]
    return {column["id"] for column in found if column.get("parent") == "data"}


def people_and_models(api: Any, project: int) -> list[Any]:
    found = [api.open_task(project, task.id) for task in api.tasks(project)]
    for task in found:
        for annotation in task["annotations"]:
            annotation.pop("created_ago")
        for one in task["predictions"]:
            one.pop("created_ago")
    return [(task["annotations"], task["predictions"], task["drafts"]) for task in found]


def test_tasks_are_filtered_and_sorted(label_studio: Any, project: int) -> None:
    api = label_studio.api()
    first = next(iter(api.tasks(project))).id
    api.create_annotation(first, [], lead_time=1.0)
    before, data = people_and_models(api, project), stored(label_studio, project)
    assert "for 4 tasks" in run(project, "--dry-run").output
    assert stored(label_studio, project) == data
    assert "fields of 3 tasks written, 0 were right" in run(project).output
    for (was, at), (now, still), expected in zip(data, stored(label_studio, project), EXPECTED, strict=False):
        assert now == {**was, **dict(zip(NAMES, (VERSION, *expected), strict=True))}
        assert at == still
    assert stored(label_studio, project)[3] == data[3], "another model's"
    assert people_and_models(api, project) == before

    assert set(NAMES) | {"image", "site"} == columns(api, project)
    assert asked(api, project, ordering=["tasks:data.lasagna_score"])[:3] == ["/1.png", "/2.png", "/0.png"]
    assert asked(api, project, ordering=["-tasks:data.lasagna_regions"])[0] == "/1.png"
    assert asked(api, project, **where("lasagna_lowest", "less", "Number", 0.6)) == ["/1.png"]
    assert asked(api, project, **where("lasagna_regions", "greater", "Number", 0)) == ["/0.png", "/1.png"]
    assert asked(api, project, **where("lasagna_classes", "contains", "String", "cat")) == ["/1.png"]
    assert asked(api, project, **where("lasagna_version", "equal", "String", VERSION)) == ["/0.png", "/1.png", "/2.png"]
    assert "fields of 0 tasks written, 3 were right" in run(project).output

    assert "fields of 3 tasks taken out" in run(project, "--remove").output
    assert [now for now, _ in stored(label_studio, project)] == [was for was, _ in data]
    assert columns(api, project) == {"image", "site"}
    assert people_and_models(api, project) == before


def test_what_is_somebody_elses_stays(label_studio: Any, project: int) -> None:
    api = label_studio.api()
    tasks = list(api.tasks(project))
    api.replace_data(tasks[1].id, {**tasks[1].data, "lasagna_score": "recipe no. 7"})
    done = run(project)
    assert "fields of 2 tasks written" in done.output
    assert isinstance(done.exception, ConfigError)
    assert f"left as they are: {tasks[1].id}" in str(done.exception)
    run(project, "--remove")
    assert stored(label_studio, project)[1][0] == {**tasks[1].data, "lasagna_score": "recipe no. 7"}


def test_a_configuration_that_reads_such_a_field(label_studio: Any) -> None:
    api = label_studio.api()
    number = api.create_project("reads it", CONFIG.replace("$image", "$lasagna_score"))
    api.import_tasks(number, [{"data": {"lasagna_score": "/0.png"}, "predictions": [GIVEN[0]]}])
    done = run(number)
    assert "reads lasagna_score of each task" in str(done.exception)
    assert stored(label_studio, number)[0][0] == {"lasagna_score": "/0.png"}


def test_tasks_uploaded_before_the_configuration(label_studio: Any, photos: dict[str, Path]) -> None:
    """Their field is called `$undefined$`, and stays so: a later configuration may name another."""
    api = label_studio.api()
    number = int(api._object("POST", "/api/projects/", json={"title": "upload first"})["id"])
    tasks = api.upload(number, [photos["cat"], photos["cup"]])
    api._json("PATCH", f"/api/projects/{number}/", json={"label_config": CONFIG})
    for task in tasks:
        api.create_prediction(task, GIVEN[1])
    before = [data for data, _ in stored(label_studio, number)]
    assert [list(data) for data in before] == [["$undefined$"], ["$undefined$"]]
    assert "fields of 2 tasks written" in run(number).output
    assert [set(data) for data, _ in stored(label_studio, number)] == [{"$undefined$", *NAMES}] * 2
    assert asked(api, number, **where("lasagna_score", "less", "Number", 0.6)) == [
        data["$undefined$"] for data in before
    ]
    assert "fields of 2 tasks taken out" in run(number, "--remove").output
    assert [data for data, _ in stored(label_studio, number)] == before


def test_labels_in_a_tag_of_their_own_and_choices() -> None:
    shape = {"id": "a", "type": "brush", "score": 0.7, "value": {"format": "rle", "rle": [1]}}
    label = {"id": "a", "type": "labels", "score": 0.7, "value": {"format": "rle", "rle": [1], "labels": ["sky"]}}
    path = {"id": "b", "type": "taxonomy", "score": 0.6, "value": {"taxonomy": [["animal", "cat"]]}}
    absent = {"id": "c", "type": "choices", "value": {"choices": ["dog"]}}
    found = fields_of(prediction(0.4, shape, label, path, absent))
    assert tuple(found.values())[1:] == (0.4, 2, 0.6, "sky, cat")


@pytest.mark.browser
def test_the_data_manager_shows_them(
    label_studio: Any, chromium: Any, photos: dict[str, Path], pytestconfig: pytest.Config
) -> None:
    """A tab that is filtered and sorted by them, in the real browser."""
    api = label_studio.api()
    number = api.create_project("sorted", CONFIG)
    tasks = api.upload(number, [photos[name] for name in ("rocket", "cat", "cup")])
    for task, given in zip(tasks, GIVEN, strict=True):
        api.create_prediction(task, given)
    assert run(number).exit_code == 0
    hidden = ["total_annotations", "cancelled_annotations", "annotators", "completed_at", "annotations_results"]
    hidden += ["predictions_results", "data.image", "total_predictions", "updated_by", "draft_exists", "created_at"]
    hidden += ["inner_id", "ground_truth", "file_upload", "updated_at", "comments", "avg_lead_time", "storage_filename"]
    hidden += ["predictions_model_versions", "annotations_ids", "predictions_score"]
    data = {
        "title": "Look at these first",
        "ordering": ["tasks:data.lasagna_score"],
        **where("lasagna_regions", "greater", "Number", 0),
        "hiddenColumns": {"explore": [f"tasks:{name}" for name in hidden if name != "data.image"], "labeling": []},
        "columnsDisplayType": {"tasks:data.lasagna_regions": "Number"},
    }
    tab = api._object("POST", "/api/dm/views/", json={"project": number, "data": data})["id"]
    Editor(chromium, label_studio)  # logs in
    before = chromium.get_window_size()
    chromium.set_window_size(1300, 620)
    chromium.get(f"{label_studio.url}/projects/{number}/data?tab={tab}")

    def text() -> str:
        return str(chromium.find_element("tag name", "body").text)

    WebDriverWait(chromium, 60).until(lambda _: "sky, cat" in text())
    shown = text()
    assert all(name in shown for name in NAMES)
    first, second = (shown.index(text) for text in ("sky, cat", "0.91"))
    assert first < second, "the lower score comes first"
    if pictures := pytestconfig.getoption("--pictures"):
        chromium.save_screenshot(str(Path(pictures) / "fields.png"))
    chromium.set_window_size(before["width"], before["height"])


@pytest.fixture(scope="module")
def backend(start_backend: Any, random_checkpoint: Path) -> Any:
    return start_backend(str(random_checkpoint))


def test_they_come_with_each_prediction(
    label_studio: Any, backend: Any, photos: dict[str, Path], eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for with an extra parameter: with the answer to a request, and with what is posted; and the question that
    predictions answer stays the same."""
    monkeypatch.setenv("LASAGNA_REDIS_URL", backend.redis_url)
    monkeypatch.setenv("LASAGNA_STATE_DIR", str(backend.web.log.parent))
    api = label_studio.api()
    number = api.create_project("by itself", CONFIG)
    tasks = api.upload(number, [photos["cat"], photos["cup"]])
    body = {"project": number, "url": backend.url, "title": "LaSagnA Assist", "extra_params": {"instant": False}}
    connected = api._object("POST", "/api/ml/", json=body)
    api.retrieve_predictions(number)
    versions = [api.predictions(task)[0]["model_version"] for task in tasks]
    assert [set(data) for data, _ in stored(label_studio, number)] == [{"image"}] * 2, "nobody asked for them"

    more = api.upload(number, [photos["rocket"]])
    body["extra_params"] = {"instant": False, "data_fields": True}
    api._json("PATCH", f"/api/ml/{connected['id']}", json=body)
    api.open_task(number, more[0])
    [answered] = eventually(lambda: with_all(label_studio, number, 1), 30, "the fields")
    assert answered["lasagna_version"] == versions[0]
    assert planned(number) == (3, 0)
    assert json.loads(CliRunner().invoke(prelabel, [str(number), "--refresh", "--json"]).stdout)["done"] == 3
    posted = eventually(lambda: with_all(label_studio, number, 3), 30, "the fields")
    for task, data in zip([*tasks, *more], posted, strict=True):
        [found] = api.predictions(task)
        assert found["model_version"] == versions[0]
        assert {name: data[name] for name in NAMES} == fields_of(found)
    assert planned(number) == (3, 0), "a task's fields are no part of what its prediction is of"


def planned(project: int) -> tuple[int, int]:
    """Tasks with a prediction of now, and with outdated ones."""
    plan = json.loads(CliRunner().invoke(prelabel, [str(project), "--dry-run", "--json"]).stdout)
    return plan["had_one"], plan["outdated"]


def with_all(label_studio: Any, project: int, count: int) -> list[dict[str, Any]]:
    """The data of the tasks that have the fields, as soon as so many do."""
    found = [data for data, _ in stored(label_studio, project) if set(NAMES) <= set(data)]
    return found if len(found) == count else []
