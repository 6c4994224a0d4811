"""The worker's own part: heart-beats, jobs that a dead worker left, lost jobs."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rq import Worker
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.worker_registration import clean_worker_registry

from backend.queue import jobs
from backend.queue.living_workers import PredictingWorker, alive_here, living_workers, predicting_workers
from backend.queue.store import Store, Work
from backend.registry.known_projects import KnownProjects
from backend.studio.way import check_label_studio
from backend.web.overview import overview
from backend.worker import rq_worker as worker
from backend.worker.rq_worker import LasagnaWorker, recover
from lasagna.settings import Settings


class SlowRuntime:
    """Takes its time, and remembers what it was asked."""

    def __init__(self, store: Store, seconds: float = 0.0) -> None:
        self.store, self.seconds, self.asked = store, seconds, []

    def predict(self, keys: list[str], job: str) -> dict[str, int]:
        self.asked.append(list(keys))
        taken = self.store.start(keys, job)
        time.sleep(self.seconds)
        for key, _ in taken:
            self.store.finish(key, {"model_version": "tiny-1", "score": 0.0, "result": []})
        return {"predicted": len(taken)}

    def release(self, keys: list[str], job: str) -> list[str]:
        return [key for key, _ in self.store.start(keys, job)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_BEAT", 0.3)
    monkeypatch.setattr(worker, "_DEAD_AFTER", 1)
    monkeypatch.setattr(worker, "_LOST_AFTER", 0)


@pytest.fixture
def runtime(store: Store) -> Iterator[SlowRuntime]:
    found = SlowRuntime(store)
    jobs.install(found)  # type: ignore[arg-type]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield found
    for number, handler in handlers.items():
        signal.signal(number, handler)
    jobs.install(None)


def ask(store: Store, count: int, batch_size: int = 4) -> list[str]:
    works = [Work("3.17", number, f"/{number}.png", "config", "tiny-1") for number in range(count)]
    keys = [entry.key for entry in store.register(works, lease=0)]
    jobs.enqueue_works(store, keys, batch_size)
    return keys


def work(store: Store, **options: Any) -> LasagnaWorker:
    found = LasagnaWorker(store.redis, store, batch_size=4)
    found.work(burst=True, logging_level="WARNING", **options)
    return found


def started(store: Store) -> list[str]:
    registry = StartedJobRegistry("predict", connection=store.redis, serializer=JSONSerializer)
    return registry.get_job_ids(cleanup=False)


def test_works_through_the_queues_by_priority(store: Store, runtime: SlowRuntime) -> None:
    ask(store, 8)
    [urgent] = store.register([Work("3.17", 99, "/99.png", "config", "tiny-1")], lease=30)
    jobs.enqueue_works(store, [urgent.key], 4, urgent=True)
    work(store)
    assert [len(keys) for keys in runtime.asked] == [1, 4, 4]
    assert store.counts()["ready"] == 9


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_slow_job_is_not_taken_for_a_dead_worker(
    store: Store, runtime: SlowRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_DEAD_AFTER", 2)  # RQ counts in whole seconds
    runtime.seconds = 4.5
    ask(store, 2)
    seen = []

    def other_worker() -> None:
        for _ in range(16):
            time.sleep(0.25)
            queue = jobs.queue(store.redis, "predict")
            StartedJobRegistry(queue=queue, connection=store.redis).cleanup()
            seen.append(len(started(store)))

    thread = threading.Thread(target=other_worker)
    thread.start()
    work(store)
    thread.join()
    assert len(runtime.asked) == 1
    assert seen.count(1) >= 12
    assert store.counts()["ready"] == 2


def test_a_worker_that_was_struck_off_is_listed_again(store: Store, runtime: SlowRuntime) -> None:
    found = LasagnaWorker(store.redis, store, batch_size=4, model_version="tiny-1")
    found.register_birth()
    store.redis.delete(found.key)  # it stood still for too long
    clean_worker_registry(jobs.queue(store.redis, "predict"))
    assert predicting_workers(store) == []
    found.run_maintenance_tasks()
    assert predicting_workers(store) == [PredictingWorker(found.name, "tiny-1")]


def test_a_worker_that_was_killed_is_missed_at_once_and_listed_by_rq_for_minutes(store: Store, tmp_path: Path) -> None:
    found = LasagnaWorker(store.redis, store, batch_size=4, model_version="tiny-1")
    found.register_birth()
    other = LasagnaWorker(store.redis, store, 1, ["train"])
    other.register_birth()
    assert {living.name for living in living_workers(store)} == {found.name, other.name}
    assert [living.name for living in living_workers(store, "train")] == [other.name]
    assert alive_here(store, ["predict", "train"])
    store.redis.hset(found.key, "last_heartbeat", "2026-01-01T00:00:00.000000Z")
    assert Worker.count(connection=store.redis) == 2
    found_now = overview(store, KnownProjects(tmp_path, store))
    assert [living.name for living in living_workers(store)] == [other.name] == list(found_now["workers"])
    assert not alive_here(store, ["predict", "train"])


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_what_a_dead_worker_left_is_run_again_one_by_one(store: Store, runtime: SlowRuntime) -> None:
    keys = ask(store, 3)
    dead = LasagnaWorker(store.redis, store, batch_size=4)
    dead.register_birth()
    found = dead.dequeue_job_and_maintain_ttl(1)
    assert found is not None
    job, _ = found
    dead.prepare_execution(job)
    dead.prepare_job_execution(job)
    store.start(keys, job.id)  # and here it is killed
    assert store.counts()["running"] == 3
    time.sleep(1.1)
    work(store)
    assert [len(each) for each in runtime.asked] == [1, 1, 1]
    assert store.counts()["ready"] == 3


@pytest.mark.usefixtures("quick")
class TestLostJobs:
    def test_a_job_that_is_gone(self, store: Store, runtime: SlowRuntime) -> None:
        keys = ask(store, 2)
        store.redis.delete("rq:queue:predict")  # as after a crash of Redis, or of a worker between two steps
        time.sleep(0.05)
        assert recover(store, 4) == 2
        work(store)
        assert store.states(keys) == ["ready", "ready"]

    def test_a_job_that_waits_is_left_alone(self, store: Store) -> None:
        ask(store, 2)
        time.sleep(0.05)
        assert recover(store, 4) == 0
        assert jobs.queue(store.redis, "predict").count == 1

    @pytest.mark.slow
    def test_a_worker_that_died_too_often(self, store: Store) -> None:
        [key] = ask(store, 1)
        queue = jobs.queue(store.redis, "predict")
        job = queue.get_jobs()[0]
        for _ in range(jobs.CRASHES + 1):
            dead = LasagnaWorker(store.redis, store, batch_size=4)
            dead.register_birth()
            found = dead.dequeue_job_and_maintain_ttl(1)
            assert found is not None
            dead.prepare_execution(found[0])
            dead.prepare_job_execution(found[0])
            store.start([key], job.id)
            time.sleep(1.1)
            StartedJobRegistry(queue=queue, connection=store.redis).cleanup()
        assert Job.fetch(job.id, connection=store.redis, serializer=JSONSerializer).get_status() == "failed"
        recover(store, 4)
        assert store.states([key]) == ["failed"]
        assert "the worker died 4 times" in store.fields([key])[0]["reason"]

    def test_waiting_for_label_studio_is_not_lost(self, store: Store) -> None:
        [key] = ask(store, 1)
        store.start([key], "job")
        store.try_later(key, "gone", 600)
        assert recover(store, 4) == 0


def test_a_job_run_elsewhere_says_so(store: Store) -> None:
    with pytest.raises(RuntimeError, match="lasagna worker"):
        jobs.predict_batch(["key"])


def test_no_pickle_is_in_redis(store: Store) -> None:
    [key] = ask(store, 1)
    job = jobs.queue(store.redis, "predict").get_jobs()[0]
    assert b'["' in job.data or b"[[" in job.data
    assert key.encode() in job.data
    assert b"\x80" not in job.data[:2]


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "come with /setup"),
        ({"LASAGNA_LABEL_STUDIO_TOKEN": "t"}, "LASAGNA_LABEL_STUDIO_URL is not"),
        ({"LASAGNA_LABEL_STUDIO_URL": "http://127.0.0.1:1"}, "there is no token"),
        (
            {"LASAGNA_LABEL_STUDIO_URL": "http://127.0.0.1:1", "LASAGNA_LABEL_STUDIO_TOKEN": "t"},
            "cannot be reached",
        ),
    ],
)
def test_the_way_to_label_studio_is_said_at_start(environ: dict[str, str], words: str) -> None:
    assert words in check_label_studio(Settings.load(environ))
