"""Posting: once, and again while Label Studio is gone."""

import time
from collections.abc import Iterator

import pytest

from backend.queue.store import Project, Store, Work
from backend.worker.delivery import Delivery
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, PROJECT, TOKEN, StubLabelStudio, wait_until

PREDICTION = {"model_version": "tiny-1", "score": 0.5, "result": [{"id": "a"}]}


@pytest.fixture
def delivery(store: Store, stub: StubLabelStudio, redis_db: str) -> Iterator[Delivery]:
    store.keep_project(PROJECT, Project(stub.url, TOKEN))
    thread = Delivery(Settings.load({"LASAGNA_REDIS_URL": redis_db, "LASAGNA_DELIVERY_TIMEOUT": "30"}), store)
    thread.start()
    yield thread
    thread.stop()
    assert not thread.is_alive()


def ready(store: Store, task: int | None = 1, *, replace: bool = False) -> str:
    work = Work(PROJECT, task, f"/{task}.png", store.keep_config(CONFIG), "tiny-1", replace)
    store.register([work], lease=0)
    store.start([work.key], "job")
    store.finish(work.key, PREDICTION)
    return work.key


def wait_for(store: Store, key: str, state: str) -> dict[str, str]:
    wait_until(lambda: store.states([key]) == [state], what=state)
    return store.fields([key])[0]


def test_posts_what_is_ready(delivery: Delivery, store: Store, stub: StubLabelStudio) -> None:
    keys = [ready(store, task) for task in (1, 2, 3)]
    for key in keys:
        assert wait_for(store, key, "done")["delivery"] == "posted"
    assert sorted(p["task"] for p in stub.predictions) == [1, 2, 3]
    assert {name: stub.predictions[0][name] for name in PREDICTION} == PREDICTION


@pytest.mark.parametrize("how", ["gone", "500", "429", "slow to come back"])
def test_tries_again_while_label_studio_is_gone(
    delivery: Delivery, store: Store, stub: StubLabelStudio, how: str
) -> None:
    if how in ("gone", "slow to come back"):
        stub.stop()
    else:
        stub.status["/api/predictions"] = int(how)
    key = ready(store)
    wait_until(lambda: store.fields([key])[0].get("attempts"), what="an attempt")
    assert store.states([key]) == ["ready"]
    assert "Label Studio" in store.fields([key])[0]["reason"]
    if how == "slow to come back":
        time.sleep(2)
    stub.status.clear()
    if how in ("gone", "slow to come back"):
        stub.start()
    assert "reason" not in wait_for(store, key, "done")
    assert len(stub.posted(1)) == 1


def test_an_answer_that_got_lost_does_not_make_a_second_prediction(
    delivery: Delivery, store: Store, stub: StubLabelStudio
) -> None:
    stub.drop_after_store = 1
    key = ready(store)
    fields = wait_for(store, key, "done")
    assert len(stub.posted(1)) == 1
    assert fields["prediction_id"] == str(stub.predictions[0]["id"])


def test_a_killed_post_does_not_make_a_second_prediction(store: Store, stub: StubLabelStudio, redis_db: str) -> None:
    store.keep_project(PROJECT, Project(stub.url, TOKEN))
    key = ready(store)
    post = store.take_post()
    assert post is not None
    stub.predictions.append({"id": 7, "task": 1, **PREDICTION})  # it got through, and the process was killed
    store.redis.zadd("lasagna:outbox", {key: 0})
    thread = Delivery(Settings.load({"LASAGNA_REDIS_URL": redis_db}), store)
    assert thread.step()
    assert store.fields([key])[0]["prediction_id"] == "7"
    assert len(stub.posted(1)) == 1


@pytest.mark.parametrize("lost", [False, True], ids=["answered", "answer lost"])
def test_a_refresh_replaces_the_older_prediction(
    delivery: Delivery, store: Store, stub: StubLabelStudio, lost: bool
) -> None:
    old = {**PREDICTION, "result": [{"id": "old"}]}
    stub.predictions += [{"id": 5, "task": 1, **old}, {"id": 6, "task": 1, **old, "model_version": "other"}]
    stub.drop_after_store = int(lost)
    wait_for(store, ready(store, replace=True), "done")
    assert sorted((p["model_version"], p["result"][0]["id"]) for p in stub.posted(1)) == [
        ("other", "old"),
        ("tiny-1", "a"),
    ]


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "does not accept the legacy token"), (404, "does not know task 1"), (400, "forced 400")],
)
def test_what_cannot_succeed_fails_in_words(
    delivery: Delivery, store: Store, stub: StubLabelStudio, status: int, words: str
) -> None:
    stub.status["/api/predictions"] = status
    assert words in wait_for(store, ready(store), "failed")["reason"]


def test_a_task_without_an_id_cannot_be_posted(delivery: Delivery, store: Store) -> None:
    assert "has no id" in wait_for(store, ready(store, None), "failed")["reason"]


def test_gives_up_after_the_timeout_and_keeps_the_prediction(
    store: Store, stub: StubLabelStudio, redis_db: str
) -> None:
    store.keep_project(PROJECT, Project(stub.url, TOKEN))
    stub.stop()
    key = ready(store)
    thread = Delivery(Settings.load({"LASAGNA_REDIS_URL": redis_db, "LASAGNA_DELIVERY_TIMEOUT": "1.5"}), store)
    thread.start()
    assert "cannot be reached" in wait_for(store, key, "failed")["reason"]
    stub.start()
    assert store.retry(key) == "ready"
    wait_for(store, key, "done")
    thread.stop()
    assert len(stub.posted(1)) == 1
