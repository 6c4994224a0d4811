"""Fields of tasks that are due: written once, tried again while Label Studio is gone, dropped where it refuses."""

import logging

import pytest

from backend.queue.store import Project, Store, Work
from backend.studio.data_fields import fields_of
from backend.worker.delivery import Delivery
from backend.worker.field_writing import FieldWriting
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, PROJECT, TOKEN, StubLabelStudio

PREDICTION = {"model_version": "tiny-1", "score": 0.5, "result": []}


@pytest.fixture
def writing(store: Store, stub: StubLabelStudio, redis_db: str) -> FieldWriting:
    store.keep_project(PROJECT, Project(stub.url, TOKEN, data_fields=True))
    return FieldWriting(Settings.load({"LASAGNA_REDIS_URL": redis_db}), store)


def predicted(store: Store, task: int) -> str:
    work = Work(PROJECT, task, f"/{task}.png", store.keep_config(CONFIG), "tiny-1")
    store.register([work], lease=0)
    store.start([work.key], "job")
    store.finish(work.key, PREDICTION, fields=fields_of(PREDICTION))
    return work.key


def test_they_are_due_once_the_prediction_is_delivered(store: Store) -> None:
    keys = [predicted(store, task) for task in (1, 2)]
    assert store.fields_to_write(10) == {}
    store.posted(keys[0], 7)
    store.gone(keys[1])
    assert {uid: list(due) for uid, due in store.fields_to_write(10).items()} == {PROJECT: ["1"]}


def test_what_is_newer_by_now_stays_due(store: Store) -> None:
    store.posted(predicted(store, 1))
    before = store.fields_to_write(10)[PROJECT]
    store.redis.hset(f"lasagna:fields:{PROJECT}", "1", '{"lasagna_score": 0.25}')
    store.fields_written(PROJECT, before)
    assert store.fields_to_write(10)[PROJECT] == {"1": '{"lasagna_score": 0.25}'}
    store.fields_written(PROJECT, store.fields_to_write(10)[PROJECT])
    assert store.fields_to_write(10) == {}


def test_many_are_due(store: Store) -> None:
    """However many: each is given out, and none for ever."""
    store.redis.sadd("lasagna:fields", PROJECT)
    store.redis.hset(f"lasagna:fields:{PROJECT}", mapping={str(task): "{}" for task in range(3000)})
    seen: set[str] = set()
    for _ in range(6):
        due = store.fields_to_write(500)[PROJECT]
        assert len(due) == 500
        seen |= set(due)
        store.fields_written(PROJECT, due)
    assert len(seen) == 3000
    assert store.fields_to_write(500) == {}


def test_label_studio_is_gone_for_a_while(writing: FieldWriting, store: Store, stub: StubLabelStudio) -> None:
    store.posted(predicted(store, 1))
    stub.stop()
    writing.step()
    assert list(store.fields_to_write(10)[PROJECT]) == ["1"]


def test_what_it_refuses_is_dropped_and_predictions_go_on(
    writing: FieldWriting, store: Store, stub: StubLabelStudio, redis_db: str, caplog: pytest.LogCaptureFixture
) -> None:
    stub.add_tasks(2)
    store.posted(predicted(store, 1))
    key = predicted(store, 2)
    with caplog.at_level(logging.WARNING, "backend.worker.field_writing"):
        writing.step()  # this one knows no /api/dm/actions, as a Label Studio of long ago
    assert "`lasagna predictions fields 3` writes them" in caplog.text
    assert store.fields_to_write(10) == {}
    assert Delivery(Settings.load({"LASAGNA_REDIS_URL": redis_db}), store).step()
    assert store.states([key]) == ["done"]
    assert len(stub.posted(2)) == 1
