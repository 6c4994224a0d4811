"""Posting through a gateway that loses answers, or gives up while the real Label Studio still works on a request: each
prediction is there once."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from backend.queue.store import Project, Store, Work
from backend.worker.delivery import Delivery, settle
from lab.faults.bad_gateway import BadGateway
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, wait_until

pytestmark = pytest.mark.label_studio

VERSION = "tiny-1~3f2a9c"


@pytest.fixture
def gateway(label_studio: Any) -> Iterator[BadGateway]:
    running = BadGateway()
    running.to(label_studio.url)
    yield running
    running.stop()


class Posting:
    """A project with tasks, and the thread that posts to it; a test makes its steps."""

    def __init__(self, label_studio: Any, gateway: BadGateway, store: Store, redis_db: str, count: int) -> None:
        self.api, self.store = label_studio.api(), store
        self.number = self.api.create_project("posting", CONFIG)
        self.api.import_tasks(self.number, [{"data": {"image": f"/{i}.png"}} for i in range(count)])
        self.tasks = [task.id for task in self.api.tasks(self.number)]
        self.uid = f"{self.number}.1"
        store.keep_project(self.uid, Project(gateway.to(label_studio.url), label_studio.login.token))
        self.delivery = Delivery(Settings.load({"LASAGNA_REDIS_URL": redis_db}), store)
        self.keys: list[str] = []

    def ready(self, task: int, x: float = 10.0, *, replace: bool = False) -> None:
        work = Work(self.uid, task, f"/{task} {x}.png", self.store.keep_config(CONFIG), VERSION, replace)
        self.store.register([work], lease=0)
        self.store.start([work.key], "job")
        self.store.finish(work.key, prediction(x))
        self.keys.append(work.key)

    def step(self) -> None:
        """One step, with no wait before the next attempt."""
        with self.store.redis.pipeline() as pipe:
            for key in self.store.redis.zrange("lasagna:outbox", 0, -1):
                pipe.zadd("lasagna:outbox", {key: 0})
            pipe.execute()
        self.delivery.step()

    def to_the_end(self, most: int = 12) -> None:
        for _ in range(most):
            if set(self.store.states(self.keys)) == {"done"}:
                return
            self.step()
        pytest.fail(f"not delivered: {self.store.fields(self.keys)}")

    def settle(self) -> None:
        """What is done a minute and ten minutes later, now."""
        for doubt in self.store.redis.zrange("lasagna:doubts", 0, -1):
            self.store.redis.zadd("lasagna:doubts", {doubt: 0})
        while self.store.redis.zcard("lasagna:doubts"):
            self.delivery.step()

    def there(self) -> list[list[float]]:
        """The place of the region of each prediction, task by task."""
        return [[p["result"][0]["value"]["x"] for p in self.api.predictions(task)] for task in self.tasks]


def prediction(x: float) -> dict[str, Any]:
    value = {"x": x, "y": 1e-05, "width": 1 / 3, "height": 5.0, "rotation": 0, "rectanglelabels": ["Cat"]}
    region = {"id": "a", "from_name": "rect", "to_name": "image", "type": "rectanglelabels", "score": 0.1 + 0.2}
    region |= {"original_width": 100, "original_height": 80, "value": value}
    return {"model_version": VERSION, "score": 0.5, "result": [region]}


@pytest.fixture
def posting(label_studio: Any, gateway: BadGateway, store: Store, redis_db: str) -> Posting:
    return Posting(label_studio, gateway, store, redis_db, 3)


@pytest.mark.parametrize("mode", ["500", "502", "half"])
@pytest.mark.parametrize("count", [1, 3])
def test_an_answer_is_lost(posting: Posting, gateway: BadGateway, mode: str, count: int) -> None:
    for task in posting.tasks[:count]:
        posting.ready(task)
    gateway.misbehave(mode, 1.0, 0)
    posting.step()
    gateway.misbehave("", 0.0, 0)
    posting.to_the_end()
    posting.settle()
    assert posting.there() == [[10.0]] * count + [[]] * (3 - count)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("replace", [False, True])
def test_it_is_stored_after_the_next_attempt(posting: Posting, gateway: BadGateway, count: int, replace: bool) -> None:
    """For a moment a task has two; then one again. Where somebody has begun meanwhile, both stay."""
    for task in posting.tasks[:count]:
        posting.ready(task, replace=replace)
    gateway.misbehave("late", 1.0, 0)
    for _ in range(count if replace else 1):
        posting.delivery.step()
    gateway.misbehave("", 0.0, 0)
    posting.to_the_end()
    assert [len(found) for found in posting.there()] == [1] * count + [0] * (3 - count)
    late = [2] * count + [0] * (3 - count)
    wait_until(lambda: [len(found) for found in posting.there()] == late, 20, "the late ones")
    begun = posting.tasks[count - 1]
    posting.api.create_annotation(begun, [], lead_time=1.0)
    posting.settle()
    expected = dict.fromkeys(posting.tasks[:count], 1) | {begun: 2}
    assert {task: len(found) for task, found in zip(posting.tasks, posting.there(), strict=True) if found} == expected


@pytest.mark.parametrize("count", [1, 2])
def test_an_older_one_of_the_version_is_not_taken_for_ours(posting: Posting, gateway: BadGateway, count: int) -> None:
    """A task that somebody has begun gets the new prediction beside the older one, whose image was another."""
    for task in posting.tasks[:count]:
        posting.api.create_prediction(task, prediction(50.0))
        posting.ready(task)
    gateway.misbehave("500", 1.0, 0)
    posting.step()
    gateway.misbehave("", 0.0, 0)
    posting.to_the_end()
    assert [sorted(found) for found in posting.there()] == [[10.0, 50.0]] * count + [[]] * (3 - count)
    posting.settle()
    assert [sorted(found) for found in posting.there()] == [[10.0, 50.0]] * count + [[]] * (3 - count)


def test_looking_for_what_is_there_twice_asks_the_backend_for_nothing(posting: Posting, serving: Any) -> None:
    """Label Studio asks its backend when a task is opened that has no prediction; one that is looked at has two."""
    asked = []

    @Request.application
    def backend(request: Request) -> Response:
        asked.append(request.path)
        said = {"status": "UP", "model_class": "x", "model_version": "x", "results": []}
        return Response(json.dumps(said), content_type="application/json")

    posting.api.connect_backend(posting.number, serving(make_server("127.0.0.1", 0, backend, threaded=True)))
    [first, second, _] = posting.tasks
    for _ in range(2):
        posting.api.create_prediction(first, prediction(10.0))
    asked.clear()
    assert settle(posting.api, first, VERSION) == 1
    assert asked == []
    posting.api.is_begun(second)
    assert "/predict" in asked
