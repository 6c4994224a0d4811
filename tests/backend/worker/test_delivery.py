"""Posting: once, and again while Label Studio is gone."""

import json
import time
from collections.abc import Iterator

import pytest

from backend.queue.store import Project, Store, Work
from backend.worker.delivery import AT_ONCE, Delivery
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


@pytest.mark.slow
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
    post = next(iter(store.take_posts()), None)
    assert post is not None
    stub.predictions.append({"id": 7, "task": 1, **PREDICTION})  # it got through, and the process was killed
    store.redis.zadd("lasagna:outbox", {key: 0})
    thread = Delivery(Settings.load({"LASAGNA_REDIS_URL": redis_db}), store)
    assert thread.step()
    assert store.fields([key])[0]["prediction_id"] == "7"
    assert len(stub.posted(1)) == 1


@pytest.mark.slow
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
    [(401, "does not accept the legacy token"), (404, "forced 404"), (400, "forced 400")],
)
def test_what_cannot_succeed_fails_in_words(
    delivery: Delivery, store: Store, stub: StubLabelStudio, status: int, words: str
) -> None:
    stub.status["/api/predictions"] = status
    assert words in wait_for(store, ready(store), "failed")["reason"]


def test_a_task_without_an_id_cannot_be_posted(delivery: Delivery, store: Store) -> None:
    assert "has no id" in wait_for(store, ready(store, None), "failed")["reason"]


@pytest.mark.slow
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


# --- several at once --------------------------------------------------------------------------------------------------


IMPORT = "/api/projects/3/import/predictions"


@pytest.fixture
def stepped(store: Store, stub: StubLabelStudio, redis_db: str) -> Delivery:
    """The thread, not started: a test makes its steps."""
    store.keep_project(PROJECT, Project(stub.url, TOKEN))
    return Delivery(Settings.load({"LASAGNA_REDIS_URL": redis_db, "LASAGNA_DELIVERY_TIMEOUT": "30"}), store)


def step_to_the_end(delivery: Delivery, store: Store, keys: list[str], most: int = 20) -> None:
    for _ in range(most):
        delivery.step()
        store.redis.eval("for _, id in ipairs(redis.call('ZRANGE', 'lasagna:outbox', 0, -1)) do "
                         "redis.call('ZADD', 'lasagna:outbox', 0, id) end", 0)  # fmt: skip
        if set(store.states(keys)) <= {"done", "failed"}:
            return
    pytest.fail(f"after {most} steps: {store.states(keys)}")


def requests_of(stub: StubLabelStudio, path: str) -> int:
    return sum(method == "POST" and where == path for method, where, _ in stub.requests)


def test_what_waits_is_posted_in_few_requests(stepped: Delivery, store: Store, stub: StubLabelStudio) -> None:
    keys = [ready(store, task) for task in range(1, AT_ONCE + 11)]
    step_to_the_end(stepped, store, keys)
    assert sorted(p["task"] for p in stub.predictions) == list(range(1, AT_ONCE + 11))
    assert {name: stub.predictions[0][name] for name in PREDICTION} == PREDICTION
    assert (requests_of(stub, IMPORT), requests_of(stub, "/api/predictions/")) == (2, 0)
    assert {fields["delivery"] for fields in store.fields(keys)} == {"posted"}


@pytest.mark.slow
@pytest.mark.parametrize("status", [404, 405, 403, 400, 413])
def test_where_several_are_not_taken_each_is_posted_by_itself(
    stepped: Delivery, store: Store, stub: StubLabelStudio, status: int
) -> None:
    stub.status[IMPORT] = status
    keys = [ready(store, task) for task in range(1, 6)]
    step_to_the_end(stepped, store, keys)
    assert sorted(p["task"] for p in stub.predictions) == [1, 2, 3, 4, 5]
    assert store.counts()["failed"] == 0


@pytest.mark.slow
def test_a_task_that_is_gone_is_no_failure_and_keeps_back_no_other(
    stepped: Delivery, store: Store, stub: StubLabelStudio
) -> None:
    stub.deleted = {2, 4}
    keys = [ready(store, task) for task in range(1, 6)]
    step_to_the_end(stepped, store, keys)
    assert sorted(p["task"] for p in stub.predictions) == [1, 3, 5]
    assert [fields["delivery"] for fields in store.fields(keys)] == ["posted", "gone", "posted", "gone", "posted"]
    assert store.counts()["failed"] == 0


def test_a_single_task_that_is_gone_is_no_failure(stepped: Delivery, store: Store, stub: StubLabelStudio) -> None:
    stub.deleted = {1}
    key = ready(store)
    step_to_the_end(stepped, store, [key])
    assert (store.states([key]), store.fields([key])[0]["delivery"]) == (["done"], "gone")


def test_a_project_that_is_gone_is_named(stepped: Delivery, store: Store, stub: StubLabelStudio) -> None:
    stub.status |= {"/api/predictions": 400, IMPORT: 404, "/api/tasks/": 404}
    keys = [ready(store, task) for task in (1, 2)]
    step_to_the_end(stepped, store, keys)
    assert all("does not know project 3" in fields["reason"] for fields in store.fields(keys))


def test_what_an_import_leaves_out_is_posted_by_itself(stepped: Delivery, store: Store, stub: StubLabelStudio) -> None:
    stub.left_out = {3}
    keys = [ready(store, task) for task in range(1, 5)]
    step_to_the_end(stepped, store, keys)
    assert sorted(p["task"] for p in stub.predictions) == [1, 2, 3, 4]
    assert requests_of(stub, "/api/predictions/") == 1


def test_an_answer_that_got_lost_does_not_make_several_twice(
    stepped: Delivery, store: Store, stub: StubLabelStudio
) -> None:
    stub.drop_after_store = 1
    keys = [ready(store, task) for task in range(1, 8)]
    step_to_the_end(stepped, store, keys)
    assert sorted(p["task"] for p in stub.predictions) == list(range(1, 8))


def test_a_worker_killed_before_or_after_several_were_stored(
    stepped: Delivery, store: Store, stub: StubLabelStudio
) -> None:
    keys = [ready(store, task) for task in range(1, 8)]
    posts = store.take_posts(AT_ONCE)
    assert len(posts) == 7
    stub.predictions += [{"id": task, "task": task, **PREDICTION} for task in (1, 2, 3)]  # and killed here
    store.redis.zadd("lasagna:outbox", dict.fromkeys(keys, 0))
    step_to_the_end(stepped, store, keys)
    assert sorted(p["task"] for p in stub.predictions) == list(range(1, 8))


def test_several_wait_while_label_studio_is_gone(stepped: Delivery, store: Store, stub: StubLabelStudio) -> None:
    keys = [ready(store, task) for task in range(1, 5)]
    stub.stop()
    stepped.step()
    assert {fields["state"] for fields in store.fields(keys)} == {"ready"}
    assert all("cannot be reached" in fields["reason"] for fields in store.fields(keys))
    stub.start()
    step_to_the_end(stepped, store, keys)
    assert sorted(p["task"] for p in stub.predictions) == [1, 2, 3, 4]


def test_what_replaces_is_posted_by_itself(stepped: Delivery, store: Store, stub: StubLabelStudio) -> None:
    old = {**PREDICTION, "result": [{"id": "old"}]}
    stub.predictions += [{"id": 5, "task": 2, **old}]
    keys = [ready(store, task, replace=task == 2) for task in (1, 2, 3)]
    step_to_the_end(stepped, store, keys)
    assert sorted((p["task"], p["result"][0]["id"]) for p in stub.predictions) == [(1, "a"), (2, "a"), (3, "a")]


class TestTakingSeveral:
    def test_only_of_one_project(self, store: Store) -> None:
        config = store.keep_config(CONFIG)
        works = [Work(f"{3 + task % 2}.1", task, "/a.png", config, "tiny-1") for task in range(1, 7)]
        store.register(works, lease=0)
        for work in works:
            store.start([work.key], "job")
            store.finish(work.key, PREDICTION)
        taken = [[post.work.task for post in store.take_posts(10)] for _ in range(3)]
        assert taken == [[1, 3, 5], [2, 4, 6], []]

    def test_no_more_bytes_than_told_but_one_at_least(self, store: Store) -> None:
        for task in range(1, 6):
            ready(store, task)
        size = len(json.dumps(PREDICTION))
        assert len(store.take_posts(10, max_bytes=2 * size + 1)) == 2
        assert len(store.take_posts(10, max_bytes=1)) == 1

    def test_not_what_a_request_waits_for(self, store: Store) -> None:
        work = Work(PROJECT, 9, "/9.png", store.keep_config(CONFIG), "tiny-1")
        store.register([work], lease=30)
        store.start([work.key], "job")
        store.finish(work.key, PREDICTION)
        keys = [ready(store, task) for task in (1, 2)]
        store.redis.zadd("lasagna:outbox", {work.key: 0})
        assert [post.key for post in store.take_posts(10)] == keys
