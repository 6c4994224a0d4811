"""The real processes together: `lasagna serve`, `lasagna worker`, Redis; killed, stopped and started again."""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests

from backend.queue.store import Store, connect
from backend.registry.registry import Registry
from lasagna import Lasagna
from lasagna.checkpoint.folder import checkpoint_version
from tests.backend.backend_helpers import (
    PROJECT,
    TOKEN,
    Backend,
    Process,
    RedisServer,
    StubLabelStudio,
    asked,
    wait_until,
)

pytestmark = pytest.mark.slow


class Running:
    """Everything, started once for this file. Label Studio is new in every test."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.redis = RedisServer(folder)
        self.redis.start()
        self.backend = Backend(folder, self.redis.url, checkpoint)
        self.backend.environ |= {"LASAGNA_PREDICT_DEADLINE": "8", "LASAGNA_BATCH_SIZE": "2"}
        self.version = checkpoint_version(checkpoint)
        self.serve = self.backend.serve()
        self.worker = self.backend.worker()
        self.store = Store(connect(self.redis.url))
        self.first = 0

    def add_tasks(self, stub: StubLabelStudio, count: int) -> list[dict[str, Any]]:
        """Tasks with numbers that no other test has."""
        self.first += 1000
        return stub.add_tasks(count, first=self.first)

    def wait_for_posts(self, stub: StubLabelStudio, tasks: list[dict[str, Any]], seconds: float = 60) -> None:
        """Until each task has its prediction, and a little longer: a second one must not come."""
        wait_until(lambda: all(stub.posted(task["id"]) for task in tasks), seconds, "the posts")
        time.sleep(1)
        assert [len(stub.posted(task["id"])) for task in tasks] == [1] * len(tasks)
        assert {p["model_version"] for p in stub.predictions} == {asked(self.version)}

    def end(self) -> None:
        self.store.redis.close()
        self.backend.end()
        self.redis.stop()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Running]:
    found = Running(tmp_path_factory.mktemp("processes"), checkpoint)
    yield found
    found.end()


@pytest.fixture
def running(everything: Running, stub: StubLabelStudio) -> Running:
    assert everything.backend.setup(stub.url).json()["model_version"] == asked(everything.version)
    return everything


def test_predictions_come_with_the_answer(running: Running, stub: StubLabelStudio) -> None:
    tasks = running.add_tasks(stub, 5)
    answer = running.backend.predict(tasks).json()
    assert [entry["model_version"] for entry in answer["results"]] == [asked(running.version)] * 5
    time.sleep(1)
    assert stub.predictions == []  # delivered, so not posted


def test_a_version_serves_without_a_restart(running: Running, stub: StubLabelStudio, tmp_path: Path) -> None:
    other = tmp_path / "random"
    Lasagna.random(seed=1).save_pretrained(other)
    registry = Registry(running.backend.folder / "registry")
    version = registry.add(other, project=PROJECT, parent=running.version, snapshot="", metrics={})
    [task] = running.add_tasks(stub, 1)

    def answer() -> dict[str, Any]:
        [entry] = running.backend.predict([task]).json()["results"]
        assert running.backend.setup(stub.url).json()["model_version"] == entry["model_version"]
        return entry

    before = answer()
    registry.promote(PROJECT, version.id, "")
    after = answer()
    registry.rollback(PROJECT, "")
    assert (before["model_version"], after["model_version"]) == (asked(running.version), asked(version.id))
    assert answer() == before
    assert running.worker.process.poll() is None


def test_a_click_is_answered_at_once(running: Running, stub: StubLabelStudio) -> None:
    [task] = running.add_tasks(stub, 1)
    value = {"x": 40.0, "y": 40.0, "keypointlabels": ["Cat"]}
    click = {"type": "keypointlabels", "from_name": "kp", "is_positive": True, "value": value}
    running.backend.predict([task], context={"result": [click]})
    started = time.monotonic()
    [entry] = running.backend.predict([task], context={"result": [click]}).json()["results"]
    assert time.monotonic() - started < 2
    assert entry["model_version"] == running.version
    assert {region["type"] for region in entry["result"]} <= {"brushlabels"}


def test_one_bad_task_among_many(running: Running, stub: StubLabelStudio) -> None:
    tasks = running.add_tasks(stub, 6)
    tasks[1]["data"] = {"text": "no image"}
    tasks[2]["data"]["image"] = "s3://bucket/a.png"
    tasks[3]["data"]["image"] = "http://127.0.0.1:1/x.png"
    stub.images[tasks[4]["data"]["image"]] = b"not an image"
    answer = running.backend.predict(tasks).json()
    assert [bool(entry) for entry in answer["results"]] == [True, False, False, False, False, True]
    words = ["no field 'image'", "no storage of the project", "is not fetched", "is not an image"]
    for position, said in enumerate(words, start=1):
        assert said in answer["errors"][str(position)]


def test_500_labels(running: Running, stub: StubLabelStudio) -> None:
    labels = "".join(f'<Label value="label {i}"/>' for i in range(500))
    config = f'<View><Image name="i" value="$image"/><BrushLabels name="b" toName="i">{labels}</BrushLabels></View>'
    [task] = running.add_tasks(stub, 1)
    [entry] = running.backend.predict([task], config).json()["results"]
    if not entry:  # a slow machine: it comes by post
        entry = wait_until(lambda: stub.posted(task["id"]), 120, "the post")[0]
    assert {region["from_name"] for region in entry["result"]} == {"b"}


def test_what_misses_the_deadline_is_posted(running: Running, stub: StubLabelStudio) -> None:
    stub.delay["/data"] = 5
    tasks = running.add_tasks(stub, 6)
    answer = running.backend.predict(tasks).json()
    answered = [task for task, entry in zip(tasks, answer["results"], strict=True) if entry]
    rest = [task for task in tasks if task not in answered]
    assert rest
    stub.delay.clear()
    running.wait_for_posts(stub, rest)
    assert [stub.posted(task["id"]) for task in answered] == [[]] * len(answered)


def test_overlapping_requests_deliver_once(running: Running, stub: StubLabelStudio) -> None:
    stub.delay["/data"] = 1
    tasks = running.add_tasks(stub, 3)
    with ThreadPoolExecutor(3) as pool:
        answers = [answer.json()["results"] for answer in pool.map(running.backend.predict, [tasks] * 3)]
    assert [sum(bool(results[i]) for results in answers) for i in range(3)] == [1, 1, 1]
    assert sum(path == tasks[0]["data"]["image"] for _, path, _ in stub.requests) == 1


def test_label_studio_goes_away_and_comes_back(running: Running, stub: StubLabelStudio) -> None:
    tasks = running.add_tasks(stub, 3)
    stub.stop()
    answer = running.backend.predict(tasks).json()
    assert answer["results"] == [[], [], []]
    assert answer["waiting"] == 3
    stub.start()
    running.wait_for_posts(stub, tasks)


def test_a_wrong_token_is_said(running: Running, stub: StubLabelStudio) -> None:
    running.backend.setup(stub.url, token="wrong")
    answer = running.backend.predict(running.add_tasks(stub, 1)).json()
    assert answer["results"] == [[]]
    assert "LASAGNA_LABEL_STUDIO_TOKEN" in answer["errors"]["0"]


def test_redis_goes_away_and_comes_back(running: Running, stub: StubLabelStudio) -> None:
    stub.delay["/data"] = 4
    tasks = running.add_tasks(stub, 6)
    seen: list[requests.Response] = []
    request = Thread(target=lambda: seen.append(running.backend.predict(tasks)))
    request.start()
    wait_until(lambda: running.store.counts()["running"], what="a running task")
    time.sleep(1.5)  # the append-only file is written every second
    running.redis.stop()
    request.join()
    [answer] = seen
    assert answer.status_code == 503
    assert "cannot reach its Redis" in answer.json()["error"]
    assert answer.json()["results"] == [[]] * 6
    assert running.backend.predict(tasks).status_code == 503
    assert requests.get(running.backend.url + "/health", timeout=1).status_code == 200
    time.sleep(3)
    stub.delay.clear()
    running.redis.start()
    running.wait_for_posts(stub, tasks, seconds=90)
    assert running.worker.output().count("is ready (first run") == 1  # the model stayed loaded


def test_a_killed_worker_loses_nothing(running: Running, stub: StubLabelStudio) -> None:
    stub.delay["/data"] = 6
    tasks = running.add_tasks(stub, 5)
    answer = running.backend.predict(tasks).json()
    assert answer["waiting"]
    wait_until(lambda: running.store.counts()["running"], what="a running task")
    running.worker.kill()
    stub.delay.clear()
    running.worker = running.backend.worker()
    answered = [task for task, entry in zip(tasks, answer["results"], strict=True) if entry]
    running.wait_for_posts(stub, [task for task in tasks if task not in answered], seconds=90)


def test_sigterm_ends_the_worker_after_its_batch(running: Running, stub: StubLabelStudio) -> None:
    stub.delay["/data"] = 3
    tasks = running.add_tasks(stub, 1)
    seen: list[requests.Response] = []
    request = Thread(target=lambda: seen.append(running.backend.predict(tasks)))
    request.start()
    wait_until(lambda: running.store.counts()["running"], what="a running task")
    assert running.worker.stop() == 0
    request.join()
    assert seen[0].json()["results"][0]["model_version"] == asked(running.version)
    assert running.serve.stop() == 0


def test_without_redis_at_the_start(tmp_path: Path, checkpoint: Path) -> None:
    backend = Backend(tmp_path, "redis://127.0.0.1:1/0", checkpoint)
    process = Process(["worker"], tmp_path / "log", {**os.environ, **backend.environ})
    assert process.process.wait(60) == 2
    assert "LASAGNA_REDIS_URL" in process.output()
    assert "Traceback" not in process.output()


def test_both_log_json(backend: Backend, stub: StubLabelStudio) -> None:
    """Everything that `serve` and `worker` print is JSON, and a task can be followed through both."""
    given = {"LASAGNA_LOG_FORMAT": "json", "LASAGNA_BASIC_AUTH": "label:pass:word", "LASAGNA_LABEL_STUDIO_TOKEN": TOKEN}
    web = backend.serve(**given, LASAGNA_LABEL_STUDIO_URL=stub.url)
    worker = backend.run(
        "worker", "--queues", "interactive,predict", wait_for="waiting for jobs", **given,
        LASAGNA_LABEL_STUDIO_URL=stub.url,
    )  # fmt: skip
    [task] = stub.add_tasks(1)
    task["data"]["image"] = "/data/upload/none.png"
    body = {"tasks": [task], "project": "3.1", "label_config": stub.label_config, "params": {}}
    answer = requests.post(backend.url + "/predict", json=body, auth=("label", "pass:word"), timeout=60)
    assert answer.json()["errors"]
    wait_until(lambda: "failed" in worker.output())
    assert web.stop() == worker.stop() == 0
    said = [json.loads(line) for process in (web, worker) for line in process.output().splitlines()]
    of_task = [(line["logger"], line["project"]) for line in said if line.get("task") == "1"]
    assert sorted(of_task) == [("backend.web.protocol", "3"), ("backend.worker.runtime", "3")]
    [job] = [line["job"] for line in said if line.get("task") == "1" and "job" in line]
    assert len(job) == 32
    assert any("Listening on" in line["message"] for line in said)
    assert not {"pass:word", TOKEN} & {word for process in (web, worker) for word in process.output().split('"')}
    assert TOKEN not in web.output() + worker.output()
