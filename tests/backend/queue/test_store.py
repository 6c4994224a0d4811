"""The records in Redis: states, leases, and who delivers a prediction."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from backend.queue.store import IMAGE_OF_OLD, Project, Store, Work, connect
from tests.backend.backend_helpers import RedisServer

PREDICTION = {"model_version": "tiny-1", "score": 0.5, "result": []}


def work(task: int | None = 1, **more: Any) -> Work:
    return Work("3.17", task, f"/data/upload/3/{task}.png", "config", "tiny-1", **more)


def finished(store: Store, lease: float = 30.0, **more: Any) -> tuple[Work, Any]:
    """A work that was asked for and predicted."""
    asked = work(**more)
    [entry] = store.register([asked], lease)
    store.start([asked.key], "job")
    store.finish(asked.key, PREDICTION)
    return asked, entry


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that may be filled."""
    server = RedisServer(tmp_path_factory.mktemp("full"))
    server.start()
    yield server
    server.stop()


class TestOutOfMemory:
    """A store whose Redis refuses whatever may take memory."""

    @pytest.fixture
    def full(self, server: RedisServer) -> Iterator[Store]:
        with connect(server.url) as client:
            client.config_set("maxmemory", 0)
            client.flushdb()
            yield Store(client)

    def fill(self, store: Store) -> dict[bytes, bytes]:
        store.redis.config_set("maxmemory", 1)
        return {key: store.redis.dump(key) for key in store.redis.scan_iter()}

    @pytest.mark.parametrize("state", ["queued", "running", "ready", "failed", "later"])
    @pytest.mark.parametrize(
        "step",
        ["register", "start", "finish", "fail", "try_later", "due_later", "requeue", "take_posts", "posted", "collect",
         "retry"],
    )  # fmt: skip
    def test_a_step_is_done_whole_or_not_at_all(self, full: Store, state: str, step: str) -> None:
        [entry] = full.register([work()], lease=0)
        key = entry.key
        if state != "queued":
            full.start([key], "job")
        if state == "ready":
            full.finish(key, PREDICTION)
        elif state == "failed":
            full.fail(key, "broken")
        elif state == "later":
            full.try_later(key, "gone", 60)
            full.redis.zadd("lasagna:later", {key: 1})  # its pause is over
        before = self.fill(full)
        steps = {
            "register": lambda: full.register([work()], 30),
            "start": lambda: full.start([key], "job"),
            "finish": lambda: full.finish(key, PREDICTION),
            "fail": lambda: full.fail(key, "reason"),
            "try_later": lambda: full.try_later(key, "gone", 60),
            "due_later": full.due_later,
            "requeue": lambda: full.requeue(key),
            "take_posts": full.take_posts,
            "posted": lambda: full.posted(key, 7),
            "collect": lambda: full.collect([entry]),
            "retry": lambda: full.retry(key),
        }
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            steps[step]()
        assert {key: full.redis.dump(key) for key in full.redis.scan_iter()} == before


class TestStates:
    def test_a_work_moves_from_queued_to_done(self, store: Store) -> None:
        [entry] = store.register([work()], lease=30)
        assert entry.status == "new"
        assert store.counts()["queued"] == 1
        assert store.start([entry.key], "job") == [(entry.key, work())]
        assert store.counts()["running"] == 1
        store.finish(entry.key, PREDICTION)
        assert store.counts()["ready"] == 1
        [(status, value)] = store.collect([entry])
        assert status == "prediction"
        assert '"score": 0.5' in value
        assert store.counts() == {"queued": 0, "running": 0, "ready": 0, "done": 1, "failed": 0}

    def test_overlapping_requests_join(self, store: Store) -> None:
        assert store.register([work(), work()], lease=30)[1].status == "queued"
        store.start([work().key], "job")
        assert store.register([work()], lease=30)[0].status == "running"

    def test_only_one_job_takes_a_work(self, store: Store) -> None:
        [entry] = store.register([work()], lease=30)
        assert len(store.start([entry.key], "first")) == 1
        assert store.start([entry.key], "second") == []

    def test_the_same_job_run_again_goes_on(self, store: Store) -> None:
        [entry] = store.register([work()], lease=30)
        store.start([entry.key], "job")
        assert len(store.start([entry.key], "job")) == 1

    def test_a_failure_keeps_its_reason_and_a_new_request_tries_again(self, store: Store) -> None:
        [entry] = store.register([work()], lease=30)
        store.fail(entry.key, "no such file \udcff")
        assert store.collect([entry]) == [("failed", "no such file ?")]
        assert store.register([work()], lease=30)[0].status == "new"
        assert store.fields([entry.key])[0].get("reason") is None

    def test_a_finished_work_is_not_failed_by_a_late_crash(self, store: Store) -> None:
        asked, entry = finished(store)
        store.collect([entry])
        store.fail(asked.key, "too late")
        assert store.states([asked.key]) == ["done"]

    def test_a_different_task_config_version_or_image_is_another_work(self) -> None:
        base = work()
        others = [
            work(task=2),
            Work("4.17", base.task, base.data, base.config, base.version),
            Work(base.project, base.task, "/other.png", base.config, base.version),
            Work(base.project, base.task, base.data, "other", base.version),
            Work(base.project, base.task, base.data, base.config, "tiny-2"),
        ]
        assert len({each.key for each in [base, *others]}) == 6


class TestDelivery:
    def test_what_a_request_collected_is_not_posted(self, store: Store) -> None:
        _, entry = finished(store)
        store.collect([entry])
        assert next(iter(store.take_posts()), None) is None

    def test_nothing_is_posted_while_a_request_waits(self, store: Store) -> None:
        finished(store, lease=30)
        assert next(iter(store.take_posts()), None) is None

    def test_what_is_ready_after_the_request_has_gone_is_posted(self, store: Store) -> None:
        [entry] = store.register([work()], lease=30)
        assert store.collect([entry]) == [("queued", "")]
        store.start([entry.key], "job")
        store.finish(entry.key, PREDICTION)
        post = next(iter(store.take_posts()), None)
        assert post is not None
        assert post.prediction == PREDICTION
        assert post.is_first
        store.posted(post.key, 17)
        assert store.fields([post.key])[0]["prediction_id"] == "17"
        assert store.states([post.key]) == ["done"]

    def test_a_web_process_that_died_leaves_its_predictions_to_the_post(self, store: Store) -> None:
        finished(store, lease=0.2)  # never collected
        assert next(iter(store.take_posts()), None) is None
        time.sleep(0.25)
        assert next(iter(store.take_posts()), None) is not None

    def test_of_two_overlapping_requests_one_gets_the_prediction(self, store: Store) -> None:
        [first] = store.register([work()], lease=30)
        [second] = store.register([work()], lease=30)
        store.start([first.key], "job")
        store.finish(first.key, PREDICTION)
        assert store.collect([second])[0][0] == "prediction"
        assert store.collect([first])[0][0] == "done"
        assert next(iter(store.take_posts()), None) is None

    def test_the_post_waits_for_the_longest_of_two_requests(self, store: Store) -> None:
        [short] = store.register([work()], lease=5)
        [long] = store.register([work()], lease=30)
        store.collect([short])
        store.start([long.key], "job")
        store.finish(long.key, PREDICTION)
        assert next(iter(store.take_posts()), None) is None
        assert store.collect([long])[0][0] == "prediction"

    def test_a_request_that_comes_during_a_post_leaves_it_alone(self, store: Store) -> None:
        finished(store, lease=0)
        assert next(iter(store.take_posts()), None) is not None
        [late] = store.register([work()], lease=30)
        assert late.status == "ready"
        assert store.collect([late])[0][0] == "ready"

    def test_right_after_a_post_the_same_request_gets_nothing(self, store: Store) -> None:
        # Label Studio lists its tasks, we post, its request arrives: answering would store a second prediction
        asked, _ = finished(store, lease=0)
        post = next(iter(store.take_posts()), None)
        assert post is not None
        store.posted(post.key, 17)
        assert store.register([asked], lease=30)[0].status == "posted"

    def test_after_an_answer_the_same_request_is_answered_again(self, store: Store) -> None:
        # "Send test request" stores nothing, and a person may press it twice
        asked, entry = finished(store)
        store.collect([entry])
        assert store.register([asked], lease=30)[0].status == "new"

    def test_an_interrupted_post_is_taken_up_again_and_known_as_in_doubt(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, _ = finished(store, lease=0)
        assert next(iter(store.take_posts()), None) is not None
        assert next(iter(store.take_posts()), None) is None
        store.redis.zadd("lasagna:outbox", {asked.key: 0})  # as after POST_VISIBILITY seconds
        again = next(iter(store.take_posts()), None)
        assert again is not None
        assert not again.is_first

    @pytest.mark.parametrize("round_", range(20))
    def test_a_request_and_the_poster_at_the_same_moment(self, redis_db: str, round_: int) -> None:
        clients = [connect(redis_db) for _ in range(3)]
        stores = [Store(client) for client in clients]
        _, entry = finished(stores[0], task=round_, lease=0)
        barrier, delivered = threading.Barrier(3), []

        def collect(store: Store) -> None:
            barrier.wait()
            if store.collect([entry])[0][0] == "prediction":
                delivered.append("answer")

        def post(store: Store) -> None:
            barrier.wait()
            if next(iter(store.take_posts()), None) is not None:
                delivered.append("post")

        threads = [
            threading.Thread(target=target, args=(store,))
            for target, store in zip((collect, post, collect), stores, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
        assert len(delivered) == 1


class TestTryingLater:
    @pytest.mark.slow
    def test_pauses_grow_and_end_in_a_failure(self, store: Store) -> None:
        [entry] = store.register([work()], lease=0)
        store.start([entry.key], "job")
        assert store.try_later(entry.key, "Label Studio is gone", timeout=600) == "later"
        assert store.states([entry.key]) == ["queued"]
        assert store.is_waiting_for_label_studio(entry.key)
        assert store.due_later() == []
        time.sleep(1.05)
        assert store.due_later() == [entry.key]
        store.start([entry.key], "job")
        assert store.try_later(entry.key, "Label Studio is gone", timeout=0.5) == "failed"
        reason = store.fields([entry.key])[0]["reason"]
        assert reason.startswith("Label Studio is gone (tried 2 times in ")

    def test_a_prediction_that_could_not_be_posted_is_kept(self, store: Store) -> None:
        asked, _ = finished(store, lease=0)
        next(iter(store.take_posts()), None)
        store.fail(asked.key, "the token is wrong")
        assert store.retry(asked.key) == "ready"
        post = next(iter(store.take_posts()), None)
        assert post is not None
        assert post.prediction == PREDICTION
        assert not post.is_first

    def test_a_request_gets_a_prediction_that_could_not_be_posted(self, store: Store) -> None:
        asked, _ = finished(store, lease=0)
        next(iter(store.take_posts()), None)
        store.fail(asked.key, "Label Studio was gone")
        [entry] = store.register([asked], lease=30)
        assert entry.status == "ready"
        assert store.collect([entry])[0][0] == "prediction"


def test_small_records_come_back(store: Store) -> None:
    project = Project("http://ls", "token", "given", {"threshold": 0.4})
    store.keep_project("3.17", project)
    assert store.project("3.17") == project
    assert store.project("4.17") == Project()
    key = store.keep_config("<View/>")
    assert store.config(key) == "<View/>"
    assert store.config("other") is None
    store.keep_result("r", PREDICTION)
    assert store.result("r") == PREDICTION
    assert store.model() is None
    store.publish_model({"version": "tiny-1"})
    assert store.model() == {"version": "tiny-1"}
    store.record_event({"action": "PROJECT_UPDATED"})
    assert store.events() == [{"action": "PROJECT_UPDATED"}]


def test_what_failed_and_is_asked_again_counts_as_failed_no_more(store: Store) -> None:
    asked = work()
    store.register([asked], lease=0)
    store.start([asked.key], "job")
    store.fail(asked.key, "no memory")
    assert store.keys("failed") == [asked.key]
    store.register([asked], lease=0)
    assert (store.keys("failed"), store.keys("queued")) == ([], [asked.key])


def test_what_an_older_release_queued_has_its_image() -> None:
    """0.1 kept the address alone, where now the task's data is."""
    old = {"project": "3.17", "task": "1", "image": "/data/upload/3/1.png", "config": "config", "version": "tiny-1"}
    assert json.loads(Work.from_fields(old).data) == {IMAGE_OF_OLD: "/data/upload/3/1.png"}
    assert Work.from_fields({key: value for key, value in old.items() if key != "image"}).data == ""
