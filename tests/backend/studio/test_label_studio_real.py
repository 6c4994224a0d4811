"""Our client, commands and labelling configurations against the real Label Studio."""

import base64
import io
import json
from importlib.resources import files
from typing import Any

import pytest
import requests
from click.testing import CliRunner

from backend.commands.prelabel import prelabel
from backend.queue.store import Post, Work
from backend.studio.client import LabelStudio, LabelStudioError
from backend.studio.images import ImageLimits, fetch_image
from backend.studio.project_id import project_uid
from backend.studio.version_names import base_version
from backend.worker.delivery import deliver, deliver_together
from lasagna.errors import ImageError
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.image import load_image
from tests.backend.backend_helpers import personal_token

pytestmark = pytest.mark.label_studio

SHIPPED = ("brush", "polygon", "rectangle", "all")
LIMITS = ImageLimits(30.0, 10_000_000)


def shipped(name: str) -> str:
    return (files("label_config") / f"{name}.xml").read_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_are_valid(label_studio: Any, name: str) -> None:
    project = label_studio.api().create_project(f"shipped {name}", shipped(name))
    plan = parse_label_config(label_studio.api().project(project)["label_config"])
    kinds = {"all": {"brush", "polygon", "rectangle", "keypoint"}}.get(name, {name})
    [image] = plan.images
    assert {control.kind for control in image.controls} == kinds
    assert len(plan.classes) == 8
    assert (image.absent_choices == "absent") == (name == "all")
    assert next(query for query in plan.classes if query.name == "Animal").text == "cat or dog"


class TestTokens:
    def test_legacy(self, label_studio: Any) -> None:
        client = LabelStudio(label_studio.url, label_studio.login.token)
        assert client.check() == f"legacy token of {label_studio.login.user}"

    def test_personal(self, label_studio: Any, photos: Any) -> None:
        client = LabelStudio(label_studio.url, personal_token(label_studio))
        assert client.check() == f"personal access token of {label_studio.login.user}"
        api = label_studio.api()
        project = api.create_project("token", shipped("brush"))
        [task] = api.upload(project, [photos["cat"]])
        [found] = client.tasks(project)
        assert found.id == task
        assert fetch_image(client, found.data["image"], task, LIMITS) == photos["cat"].read_bytes()

    def test_wrong(self, label_studio: Any) -> None:
        with pytest.raises(LabelStudioError, match="does not accept the legacy token"):
            LabelStudio(label_studio.url, "0" * 40).check()
        header, claims, _ = personal_token(label_studio).split(".")
        forged = ".".join([header, claims, base64.urlsafe_b64encode(b"signature").decode()])
        with pytest.raises(LabelStudioError, match="does not accept the personal access token"):
            LabelStudio(label_studio.url, forged).check()


def test_images_without_a_way_to_them(label_studio: Any) -> None:
    client = LabelStudio(label_studio.url, label_studio.login.token)
    api = label_studio.api()
    project = api.create_project("no way", shipped("brush"))
    api.import_tasks(project, [{"data": {"image": "s3://bucket/a.png"}}])
    [task] = client.tasks(project)
    assert task.data == {"image": "s3://bucket/a.png"}  # as it was imported, not resolved
    with pytest.raises(ImageError, match="no storage of the project"):
        fetch_image(client, task.data["image"], task.id, LIMITS)
    for address in (f"/data/upload/{project}/none.png", f"{label_studio.url}/data/upload/999/none.png"):
        with pytest.raises(ImageError, match="has no uploaded file"):
            fetch_image(client, address, task.id, LIMITS)


def test_predictions_are_made_listed_and_removed(label_studio: Any) -> None:
    client = LabelStudio(label_studio.url, label_studio.login.token)
    api = label_studio.api()
    project = api.create_project("predictions", shipped("brush"))
    api.import_tasks(project, [{"data": {"image": "/data/upload/a.png"}} for _ in range(3)])
    tasks = list(client.tasks(project, page_size=2))
    assert len({task.id for task in tasks}) == 3
    number = client.create_prediction(tasks[0].id, {"model_version": "tiny-1", "score": 0.5, "result": []})
    assert [p["model_version"] for p in client.predictions(tasks[0].id)] == ["tiny-1"]
    versions = {task.id: task.model_versions for task in client.tasks(project)}
    assert versions[tasks[0].id] == {"tiny-1"}
    assert versions[tasks[1].id] == frozenset()
    client.delete_prediction(number)
    client.delete_prediction(number)
    assert client.predictions(tasks[0].id) == []
    assert project_uid(client.project(project)).startswith(f"{project}.")


class TestSeveralAtOnce:
    """What `import_predictions` says of Label Studio, in the real one; the single call is the measure."""

    @pytest.fixture
    def tasks(self, label_studio: Any) -> list[int]:
        api = label_studio.api()
        project = api.create_project("several", shipped("rectangle"))
        api.import_tasks(project, [{"data": {"image": f"/data/upload/{number}.png"}} for number in range(6)])
        return [task.id for task in api.tasks(project)]

    @pytest.fixture
    def project(self, label_studio: Any, tasks: list[int]) -> int:
        return int(label_studio.api()._object("GET", f"/api/tasks/{tasks[0]}/")["project"])

    def prediction(self, label: str = "Animal", version: str = "tiny-1") -> dict[str, Any]:
        value = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": [label]}
        region = {"id": "a", "from_name": "rectangle", "to_name": "image", "type": "rectanglelabels", "value": value}
        region |= {"original_width": 64, "original_height": 48, "image_rotation": 0, "score": 0.9}
        return {"model_version": version, "score": 0.5, "result": [region]}

    def post(self, project: int, task: int, prediction: dict[str, Any], is_first: bool = True) -> Post:
        work = Work(f"{project}.1", task, "{}", "config", prediction["model_version"])
        return Post(work.key, work, prediction, is_first)

    def counted(self, label_studio: Any, project: int) -> dict[int, int]:
        """As the data manager counts them."""
        answer = label_studio.api()._object("GET", "/api/tasks/", params={"project": project, "fields": "task_only"})
        return {task["id"]: task["total_predictions"] for task in answer["tasks"]}

    def test_as_the_single_call_stores_them(self, label_studio: Any, project: int, tasks: list[int]) -> None:
        api = label_studio.api()
        api.create_prediction(tasks[0], self.prediction())
        assert api.import_predictions(project, [{"task": task, **self.prediction()} for task in tasks[1:]]) == 5
        own = ("id", "task", "created_at", "updated_at", "created_ago")
        stored = [{k: v for k, v in api.predictions(task)[0].items() if k not in own} for task in tasks]
        assert all(one == stored[0] for one in stored)
        assert set(self.counted(label_studio, project).values()) == {1}
        assert api.model_versions(project, tasks[:2]) == {task: {"tiny-1"} for task in tasks[:2]}

    def test_a_task_that_is_gone(self, label_studio: Any, project: int, tasks: list[int]) -> None:
        api = label_studio.api()
        api._request("DELETE", f"/api/tasks/{tasks[1]}/")
        posts = [self.post(project, task, self.prediction()) for task in tasks[:3]]
        assert deliver_together(api, posts) == set()
        assert api.predictions(tasks[0]) == []  # nothing was stored
        assert deliver(api, tasks[1], posts[1]) is None
        assert deliver(api, tasks[0], posts[0])
        assert deliver(api, tasks[1], posts[1]._replace(is_first=False)) is None

    def test_what_does_not_fit_the_configuration_is_left_out(
        self, label_studio: Any, project: int, tasks: list[int]
    ) -> None:
        api = label_studio.api()
        posts = [self.post(project, tasks[0], self.prediction("no such label"))]
        posts += [self.post(project, task, self.prediction()) for task in tasks[1:3]]
        assert deliver_together(api, posts) == {post.key for post in posts[1:]}
        assert deliver(api, tasks[0], posts[0])  # by itself it is stored, as before

    def test_what_is_there_is_not_stored_again(self, label_studio: Any, project: int, tasks: list[int]) -> None:
        api = label_studio.api()
        posts = [self.post(project, task, self.prediction(), is_first=False) for task in tasks]
        api.create_prediction(tasks[0], self.prediction())
        api.create_prediction(tasks[1], self.prediction(version="tiny-0"))
        assert deliver_together(api, posts) == {post.key for post in posts}
        assert list(self.counted(label_studio, project).values()) == [1, 2, 1, 1, 1, 1]

    def test_a_project_that_is_gone(self, label_studio: Any, project: int, tasks: list[int]) -> None:
        api = label_studio.api()
        api.delete_project(project)
        posts = [self.post(project, task, self.prediction()) for task in tasks[:2]]
        with pytest.raises(LabelStudioError, match=f"does not know project {project}"):
            deliver_together(api, posts)
        with pytest.raises(LabelStudioError, match=f"does not know project {project}"):
            deliver(api, tasks[0], posts[0])


def test_everything_together(
    label_studio: Any, start_backend: Any, random_checkpoint: Any, photos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connect, retrieve, open, click, pre-label, through the real processes."""
    backend = start_backend(str(random_checkpoint))
    client = LabelStudio(label_studio.url, label_studio.login.token, timeout=150)
    api = label_studio.api()
    project = api.create_project("together", shipped("all"))
    tasks = api.upload(project, [photos["cat"], photos["cup"]])
    connection = api.connect_backend(project, backend.url, interactive=True)

    api.retrieve_predictions(project)
    for task in tasks:
        [prediction] = client.predictions(task)
        assert base_version(prediction["model_version"]) == backend.model_version
        width, height = load_image(io.BytesIO(photos["cat" if task == tasks[0] else "cup"].read_bytes())).size
        drawn = [region for region in prediction["result"] if "original_width" in region]
        assert drawn
        assert {(region["original_width"], region["original_height"]) for region in drawn} == {(width, height)}
    api.retrieve_predictions(project)  # nothing is missing, so nothing is asked
    assert [len(client.predictions(task)) for task in tasks] == [1, 1]

    value = {"x": 50, "y": 50, "width": 0.3, "keypointlabels": ["Animal"]}
    click = {"type": "keypointlabels", "from_name": "click", "to_name": "image", "is_positive": True, "value": value}
    answer = requests.post(
        f"{label_studio.url}/api/ml/{connection}/interactive-annotating",
        json={"task": tasks[0], "context": {"result": [click]}},
        headers={"Authorization": f"Token {label_studio.login.token}"},
        timeout=100,
    ).json()
    assert not answer.get("errors")
    assert isinstance(answer["data"]["result"], list)

    [opened] = api.upload(project, [photos["rocket"]])
    assert len(api.open_task(project, opened)["predictions"]) == 1

    [missing] = api.upload(project, [photos["person"]])
    monkeypatch.setenv("LASAGNA_REDIS_URL", backend.redis_url)
    arguments = [str(project), "--url", label_studio.url, "--token", personal_token(label_studio)]
    result = CliRunner().invoke(prelabel, arguments)
    assert result.exit_code == 0, result.output
    assert "1 predicted, 3 had a prediction already, 0 failed" in result.output
    assert [len(client.predictions(task)) for task in [*tasks, opened, missing]] == [1, 1, 1, 1]

    requests.post(
        f"{label_studio.url}/api/ml/{connection}/train",
        json={},
        headers={"Authorization": f"Token {label_studio.login.token}"},
        timeout=100,
    )
    health = requests.get(backend.url + "/health", timeout=10).json()
    assert json.dumps(health["model_version"]) == json.dumps(backend.model_version)


def test_annotated_tasks_and_their_export(label_studio: Any, photos: Any) -> None:
    """What snapshots are made of: submitted, skipped and deleted annotations."""
    api = label_studio.api()
    project = api.create_project("annotated", shipped("brush"))
    tasks = api.upload(project, [photos["cat"], photos["cup"], photos["rocket"]])
    client = LabelStudio(label_studio.url, label_studio.login.token)
    assert client.annotated(project) == {}

    def submit(task: int, **more: Any) -> int:
        return int(client._json("POST", f"/api/tasks/{task}/annotations/", json={"result": [], **more})["id"])

    kept, _ = submit(tasks[0]), submit(tasks[1], was_cancelled=True)
    gone = submit(tasks[2])
    before = client.annotated(project)
    assert list(before) == [tasks[0], tasks[2]]
    [first, third] = client.export(project, list(before), page_size=1)
    assert [first["annotations"][0]["id"], third["annotations"][0]["id"]] == [kept, gone]
    assert first["data"]["image"].startswith("/data/upload/")
    client._request("DELETE", f"/api/annotations/{gone}/")
    client._json("PATCH", f"/api/annotations/{kept}/", json={"ground_truth": True})
    after = client.annotated(project)
    assert list(after) == [tasks[0]]
    assert after[tasks[0]] > before[tasks[0]]  # a changed annotation is seen
