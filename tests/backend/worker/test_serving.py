"""Projects that are served by versions of their own, through the web process and the worker."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from backend.app import create_app
from backend.queue.store import Store
from backend.registry.registry import Registry, Version
from backend.studio.version_names import without_question
from backend.worker.runtime import Runtime
from lasagna import Lasagna
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, PROJECT, TOKEN, StubLabelStudio, asked

FIRST, SECOND = "3.1795397674", "4.1795397675"
CLICK = {"type": "keypointlabels", "from_name": "kp", "is_positive": True,
         "value": {"x": 40.0, "y": 30.0, "keypointlabels": ["Cat"]}}  # fmt: skip


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other random weights."""
    folder = tmp_path_factory.mktemp("other") / "random"
    Lasagna.random(seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def settings(redis_db: str, checkpoint: Path, registry: Registry) -> Settings:
    environ = {"LASAGNA_REDIS_URL": redis_db, "LASAGNA_MODEL": str(checkpoint), "LASAGNA_DEVICE": "cpu"}
    return Settings.load({**environ, "LASAGNA_REGISTRY": str(registry.folder)})


@pytest.fixture
def runtime(settings: Settings, store: Store, checkpoint: Path) -> Iterator[Runtime]:
    """A worker without RQ: a thread that does what is in the queues."""
    from backend.queue import jobs

    found = Runtime(Lasagna.from_pretrained(checkpoint, device="cpu"), settings, store)
    store.publish_model({"version": found.model.version})
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.01):
            if keys := store.keys("queued"):
                found.predict(keys, "job")
            for job in jobs.queue(store.redis, "interactive").get_jobs():
                job.delete()
                if job.func_name == "backend.queue.jobs.answer_click":
                    key, request = job.args
                    store.answer(key, found.click(request))

    thread = threading.Thread(target=work)
    thread.start()
    yield found
    ended.set()
    thread.join()


class Served:
    """A project of Label Studio towards the web process."""

    def __init__(self, client: FlaskClient, project: str, stub: StubLabelStudio) -> None:
        self.client, self.project, self.stub = client, project, stub
        self.number = int(project[0]) * 1000

    def setup(self) -> str:
        body = {"project": self.project, "schema": CONFIG, "hostname": self.stub.url, "access_token": TOKEN}
        extra = {"threshold": 0.01}  # everything present
        answer = self.client.post("/setup", json={**body, "extra_params": extra}).json
        version = without_question(str(answer["model_version"]))
        assert answer["model_version"] == asked(version, **extra)
        return version

    def predict(self, **params: Any) -> Any:
        """The prediction of a new task that has always the same image."""
        self.number += 1
        [task] = self.stub.add_tasks(1, first=self.number, same_image=True)
        body = {"tasks": [task], "label_config": CONFIG, "project": self.project, "params": params}
        answer = self.client.post("/predict", json=body).json
        assert answer["errors"] == {}
        [prediction] = answer["results"]
        assert params or prediction["model_version"] == answer["model_version"]
        return {**prediction, "model_version": without_question(prediction["model_version"])}


@pytest.fixture
def serve(runtime: Runtime, settings: Settings, stub: StubLabelStudio) -> Callable[[str], Served]:
    client = create_app(settings).test_client()
    return lambda project: Served(client, project, stub)


@pytest.fixture
def version(registry: Registry, other_checkpoint: Path) -> Version:
    given: dict[str, Any] = {"parent": "", "snapshot": "", "metrics": {}}
    return registry.add(other_checkpoint, project=PROJECT, **given)


def test_rollback_restores_the_answers_bit_for_bit(
    serve: Any, runtime: Runtime, registry: Registry, version: Version, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = serve(FIRST)
    assert project.setup() == runtime.model.version
    own = project.predict()
    registry.promote(PROJECT, version.id, "passed")
    assert project.setup() == version.id
    first = project.predict()
    assert first["model_version"] == version.id
    assert first["result"] != own["result"]
    second = registry.add(make(7.0), project=PROJECT, parent=version.id, snapshot="", metrics={})
    registry.promote(PROJECT, second.id, "passed")
    assert project.predict()["model_version"] == second.id

    # As if nothing had been computed before; and nothing is loaded from the disk, which is what would take time.
    for key in runtime.store.redis.scan_iter("lasagna:result:*"):
        runtime.store.redis.delete(key)
    monkeypatch.setattr(Lasagna, "from_pretrained", None)
    registry.rollback(PROJECT, "worse")
    assert project.predict() == first
    assert project.setup() == version.id
    registry.rollback(PROJECT, "worse too")
    assert project.predict() == own
    assert project.setup() == runtime.model.version


def test_projects_have_champions_of_their_own(
    serve: Any, runtime: Runtime, registry: Registry, version: Version
) -> None:
    registry.promote(PROJECT, version.id, "")
    one, two = serve(FIRST), serve(SECOND)
    assert [project.setup() for project in (one, two)] == [version.id, runtime.model.version]
    versions = [project.predict()["model_version"] for project in (one, two, one, two)]
    assert versions == [version.id, runtime.model.version] * 2
    of_one = one.client.get("/versions", query_string={"project": FIRST}).json["versions"]
    assert of_one == [version.id]


def test_the_same_image_is_computed_once_per_version(
    serve: Any, runtime: Runtime, registry: Registry, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, whole = [], Lasagna.segment_batch

    def segment_batch(self: Lasagna, *args: Any, **more: Any) -> Any:
        asked.append(self.version)
        return whole(self, *args, **more)

    monkeypatch.setattr(Lasagna, "segment_batch", segment_batch)
    project = serve(FIRST)
    project.setup()
    for _ in range(2):
        project.predict()
        project.predict()
        registry.promote(PROJECT, version.id, "")
    registry.rollback(PROJECT, "")
    project.predict()
    assert asked == [runtime.model.version, version.id]


def test_a_click_is_answered_by_the_champion(
    serve: Any, runtime: Runtime, registry: Registry, version: Version
) -> None:
    project = serve(FIRST)
    project.setup()
    before = project.predict(context={"result": [CLICK]})
    registry.promote(PROJECT, version.id, "")
    after = project.predict(context={"result": [CLICK]})
    assert (before["model_version"], after["model_version"]) == (runtime.model.version, version.id)
    assert [len(runtime.models.versions), len(runtime._features)] == [2, 2]


def test_a_job_of_a_version_that_cannot_be_loaded_fails_with_the_reason(
    serve: Any, runtime: Runtime, registry: Registry, version: Version, stub: StubLabelStudio
) -> None:
    registry.promote(PROJECT, version.id, "")
    (version.checkpoint / "model.safetensors").unlink()
    project, healthy = serve(FIRST), serve(SECOND)
    project.setup()
    healthy.setup()
    [task] = stub.add_tasks(1)
    body = {"tasks": [task], "label_config": CONFIG, "project": FIRST}
    answer = project.client.post("/predict", json=body).json
    assert answer["results"] == [[]]
    assert "not a complete checkpoint" in answer["errors"]["0"]
    assert healthy.predict()["model_version"] == runtime.model.version
