"""The web process: every endpoint, answered as Label Studio expects it."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from backend.app import create_app
from backend.queue import jobs
from backend.queue.store import Project, Store, connect
from backend.registry.label_histories import LabelHistories
from backend.studio.project_id import made_at, project_uid
from backend.web.problems import status_line
from backend.worker.rq_worker import LasagnaWorker
from lasagna.checkpoint.folder import checkpoint_version
from lasagna.errors import ConfigError
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, PROJECT, TOKEN, StubLabelStudio, asked, wait_until

NO_IMAGE = '<View><Text name="t" value="$text"/><Choices name="c" toName="t"><Choice value="a"/></Choices></View>'
NO_CONTROL = '<View><Image name="i" value="$image"/></View>'


def app_settings(redis_url: str, checkpoint: Any, **more: str) -> Settings:
    environ = {"LASAGNA_REDIS_URL": redis_url, "LASAGNA_MODEL": str(checkpoint), "LASAGNA_PREDICT_DEADLINE": "0.3"}
    return Settings.load({**environ, **more})


@pytest.fixture
def client(redis_db: str, checkpoint: Any) -> FlaskClient:
    return create_app(app_settings(redis_db, checkpoint)).test_client()


def predict(client: FlaskClient, tasks: Any, config: Any = CONFIG, **more: Any) -> Any:
    return client.post("/predict", json={"tasks": tasks, "label_config": config, "project": PROJECT, **more})


def task(number: int) -> dict[str, Any]:
    return {"id": number, "data": {"image": f"/data/upload/3/{number}.png"}}


@pytest.fixture
def worker(store: Store) -> Iterator[None]:
    """Finishes every queued work with an empty prediction, like a worker without a model."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.02):
            for key, _ in store.start(store.keys("queued"), "job"):
                store.finish(key, {"model_version": "tiny-1", "score": 0.0, "result": []})

    thread = threading.Thread(target=work)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.mark.slow
def test_imports_no_torch() -> None:
    commands = "backend.commands.serve, backend.commands.jobs, backend.commands.prelabel, backend.commands.doctor"
    modules = f"backend.app, backend._wsgi, {commands}, backend.doctor.task"
    code = f"import sys, {modules}; print([m for m in sys.modules if 'torch' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestHealth:
    def test_says_what_is_there(self, client: FlaskClient) -> None:
        answer = client.get("/health")
        assert answer.status_code == 200
        assert answer.json["status"] == "UP"
        assert answer.json["redis"] == "up"
        assert answer.json["workers"] == 0

    def test_without_redis(self, checkpoint: Any) -> None:
        started = time.monotonic()
        answer = create_app(app_settings("redis://127.0.0.1:1/0", checkpoint)).test_client().get("/health")
        assert answer.status_code == 200
        assert answer.json["redis"].startswith("down")
        assert time.monotonic() - started < 1  # Label Studio waits no longer


class TestReady:
    @pytest.fixture
    def living(self, store: Store) -> Iterator[LasagnaWorker]:
        """A worker as Redis knows it once its model is loaded."""
        worker = LasagnaWorker(store.redis, store, 1, model_version="tiny-1")
        worker.register_birth()
        yield worker
        worker.register_death()

    @pytest.fixture
    def training(self, store: Store) -> Iterator[LasagnaWorker]:
        worker = LasagnaWorker(store.redis, store, 1, ["train"])
        worker.register_birth()
        yield worker
        worker.register_death()

    def test_with_everything(
        self, redis_db: str, checkpoint: Any, store: Store, living: LasagnaWorker, stub: StubLabelStudio
    ) -> None:
        stub.images["/health"] = b"{}"
        stub.tokens = {""}
        store.keep_project(PROJECT, Project(stub.url, TOKEN))
        answer = create_app(app_settings(redis_db, checkpoint)).test_client().get("/ready")
        assert answer.status_code == 200
        assert answer.json == {
            "ready": True,
            "checks": {
                "redis": {"ok": True, "words": "answers"},
                "worker": {"ok": True, "words": "1 with the model tiny-1"},
                "label_studio": {"ok": True, "words": f"answers: {stub.url}"},
            },
        }

    def test_without_a_label_studio_so_far(self, client: FlaskClient, living: LasagnaWorker) -> None:
        answer = client.get("/ready")
        assert answer.status_code == 200
        assert answer.json["checks"]["label_studio"]["words"].startswith("not known yet")

    def test_a_worker_that_trains_predicts_nothing(self, client: FlaskClient, training: LasagnaWorker) -> None:
        answer = client.get("/ready")
        assert answer.status_code == 503
        assert [name for name, check in answer.json["checks"].items() if not check["ok"]] == ["worker"]
        assert "lasagna worker" in answer.json["checks"]["worker"]["words"]

    def test_a_worker_that_was_killed(self, client: FlaskClient, store: Store, living: LasagnaWorker) -> None:
        store.redis.hset(living.key, "last_heartbeat", "2026-01-01T00:00:00.000000Z")
        assert client.get("/ready").status_code == 503

    def test_label_studio_is_gone(self, redis_db: str, checkpoint: Any, living: LasagnaWorker) -> None:
        settings = app_settings(redis_db, checkpoint, LASAGNA_LABEL_STUDIO_URL="http://ann:secret@127.0.0.1:1")
        answer = create_app(settings).test_client().get("/ready")
        assert answer.status_code == 503
        said = answer.json["checks"]["label_studio"]
        assert not said["ok"]
        assert "http://***@127.0.0.1:1 cannot be reached: connection refused" in said["words"]
        assert "secret" not in answer.text

    @pytest.mark.slow
    def test_label_studio_hangs(
        self, redis_db: str, checkpoint: Any, living: LasagnaWorker, stub: StubLabelStudio
    ) -> None:
        stub.delay["/health"] = 30
        settings = app_settings(redis_db, checkpoint, LASAGNA_LABEL_STUDIO_URL=stub.url)
        started = time.monotonic()
        answer = create_app(settings).test_client().get("/ready")
        assert time.monotonic() - started < 10
        assert "no answer within the time limit" in answer.json["checks"]["label_studio"]["words"]

    def test_without_redis(self, checkpoint: Any) -> None:
        answer = create_app(app_settings("redis://:hidden@127.0.0.1:1/0", checkpoint)).test_client().get("/ready")
        assert answer.status_code == 503
        assert not answer.json["checks"]["redis"]["ok"]
        assert "hidden" not in answer.text

    def test_wants_the_password(self, redis_db: str, checkpoint: Any) -> None:
        client = create_app(app_settings(redis_db, checkpoint, LASAGNA_BASIC_AUTH="ann:studio")).test_client()
        assert client.get("/ready").status_code == 401
        assert client.get("/ready", auth=("ann", "studio")).status_code == 503


class TestSetup:
    BODY = {"project": PROJECT, "schema": CONFIG, "hostname": "http://127.0.0.1:8080", "access_token": TOKEN}  # noqa: RUF012

    def test_without_a_worker_reads_the_version_from_the_checkpoint(self, client: FlaskClient, checkpoint: Any) -> None:
        started = time.monotonic()
        answer = client.post("/setup", json={**self.BODY, "extra_params": None})
        assert answer.json is not None
        assert answer.json["model_version"] == asked(checkpoint_version(checkpoint))
        assert time.monotonic() - started < 3

    def test_says_the_version_of_the_worker(self, client: FlaskClient, store: Store) -> None:
        store.publish_model({"version": "tiny-0f0f0f0f"})
        answer = client.post("/setup", json=self.BODY).json
        assert answer["model_version"] == asked("tiny-0f0f0f0f")
        [part] = answer["not_served"]
        assert '<KeyPointLabels name="kp"> is not served: ' in part
        assert "its labels Bird are not predicted" in part
        assert answer["by_people"] == []

    def test_a_part_that_is_not_served_is_logged_once(
        self, redis_db: str, checkpoint: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Label Studio calls `/setup` before every prediction that it stores."""
        client = create_app(app_settings(redis_db, checkpoint)).test_client()
        for _ in range(3):
            client.post("/setup", json=self.BODY)
        said = [record.getMessage() for record in caplog.records if "is not served" in record.getMessage()]
        assert len(said) == 1
        assert said[0].startswith('<KeyPointLabels name="kp"> is not served')

    def test_remembers_how_to_reach_the_project(self, client: FlaskClient, store: Store) -> None:
        client.post("/setup", json={**self.BODY, "extra_params": '{"threshold": 0.25, "other": 1}'})
        project = store.project(PROJECT)
        assert (project.url, project.token) == ("http://127.0.0.1:8080", TOKEN)
        assert project.params == {"threshold": 0.25}

    @pytest.mark.parametrize("extra", [{"exclusive": True}, '{"exclusive": true}'], ids=["object", "text"])
    def test_extra_parameters_in_both_forms(self, client: FlaskClient, store: Store, extra: Any) -> None:
        assert client.post("/setup", json={**self.BODY, "extra_params": extra}).status_code == 200
        assert store.project(PROJECT).params == {"exclusive": True}

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"schema": NO_IMAGE}, "shows no image"),
            ({"schema": NO_CONTROL}, "no control with labels draws on it"),
            ({"schema": "<View>"}, "not the XML of Label Studio"),
            ({"schema": ""}, "no labelling configuration"),
            ({"schema": None}, "no labelling configuration"),
            ({"hostname": "label-studio"}, "address of Label Studio"),
            ({"extra_params": "{"}, "no JSON"),
            ({"extra_params": "[1]"}, "are a JSON object"),
            ({"extra_params": {"threshold": 2}}, "between 0 and 1"),
            ({"extra_params": {"threshold": True}}, "between 0 and 1"),
            ({"extra_params": {"exclusive": "yes"}}, "true or false"),
            ({"extra_params": {"thresholds": 0.3}}, "are those of labels"),
            ({"extra_params": {"thresholds": {"Cat": 3}}}, "the threshold of 'Cat' is a probability"),
            ({"extra_params": {"thresholds": {"Cat": "0.3"}}}, "the threshold of 'Cat' is a number"),
            ({"extra_params": {"thresholds": {"Cow": 0.3}}}, "'Cow', and the labelling configuration has the labels"),
            ({"extra_params": {"chunk_size": 0}}, "whole number"),
        ],
    )
    def test_refuses_in_words(self, client: FlaskClient, change: dict[str, Any], words: str) -> None:
        answer = client.post("/setup", json={**self.BODY, **change})
        assert answer.status_code == 400
        assert words in answer.json["error"]
        assert words in answer.status  # the status line is what Label Studio shows

    @pytest.mark.parametrize(
        ("name", "shown"), [("bild_größe", '"bild_größe"'), ("картинка", "[name 1]"), ("画像", "[name 1]")]
    )
    def test_a_name_keeps_its_characters_where_the_line_carries_them(
        self, client: FlaskClient, name: str, shown: str
    ) -> None:
        config = f'<View><Image name="{name}" value="$image"/></View>'
        answer = client.post("/setup", json={**self.BODY, "schema": config})
        assert answer.status_code == 400
        assert f'"{name}"' in answer.json["error"]
        assert shown in answer.status
        assert "?" not in answer.status
        assert ("lasagna doctor" in answer.status) == (shown == "[name 1]")
        answer.status.encode("latin-1")

    def test_without_model_version(self, redis_db: str) -> None:
        client = create_app(app_settings(redis_db, "owner/on-the-hub")).test_client()
        answer = client.post("/setup", json=self.BODY)
        assert answer.status_code == 503
        assert "start `lasagna worker`" in answer.json["error"]

    def test_without_redis(self, checkpoint: Any) -> None:
        client = create_app(app_settings("redis://127.0.0.1:1/0", checkpoint)).test_client()
        answer = client.post("/setup", json=self.BODY)
        assert answer.status_code == 503
        assert "cannot reach its Redis" in answer.json["error"]


class TestPredict:
    @pytest.mark.usefixtures("worker")
    def test_one_entry_per_task_in_order(self, client: FlaskClient, checkpoint: Any) -> None:
        answer = predict(client, [task(1), task(2), task(3)]).json
        assert [entry["result"] for entry in answer["results"]] == [[], [], []]
        assert answer["model_version"] == asked(checkpoint_version(checkpoint))

    @pytest.mark.usefixtures("worker")
    @pytest.mark.parametrize(
        "bad", [{"id": 9, "data": {"text": "x"}}, {"id": 9}, {}, None, 5, "task", [], {"id": "x", "data": {"image": 1}}]
    )
    def test_a_bad_task_fails_alone(self, client: FlaskClient, bad: Any) -> None:
        answer = predict(client, [task(1), bad, task(2)]).json
        assert [bool(entry) for entry in answer["results"]] == [True, False, True]
        assert answer["results"][1] == []
        assert list(answer["errors"]) == ["1"]

    def test_a_task_without_the_image_is_recorded_as_failed(self, client: FlaskClient, store: Store) -> None:
        predict(client, [{"id": 9, "data": {"text": "x"}}])
        [fields] = store.fields(store.keys("failed"))
        assert fields["task"] == "9"
        assert "has no field 'image'" in fields["reason"]

    def test_answers_at_the_deadline_and_leaves_the_rest_to_the_worker(self, client: FlaskClient, store: Store) -> None:
        started = time.monotonic()
        answer = predict(client, [task(number) for number in range(1, 11)]).json
        assert 0.3 <= time.monotonic() - started < 3
        assert answer["results"] == [[]] * 10
        assert answer["waiting"] == 10
        assert jobs.queue(store.redis, "predict").count == 3  # batches of 4
        assert next(iter(store.take_posts()), None) is None
        for key, _ in store.start(store.keys("queued"), "job"):
            store.finish(key, {"model_version": "tiny-1", "score": 0.0, "result": []})
        assert next(iter(store.take_posts()), None) is not None

    @pytest.mark.slow
    def test_a_single_task_goes_ahead_of_batches(self, client: FlaskClient, store: Store) -> None:
        predict(client, [task(1), task(2)])
        predict(client, [task(2)])  # a person opens one of them
        assert jobs.queue(store.redis, "interactive").count == 1
        assert store.counts()["queued"] == 2

    @pytest.mark.usefixtures("worker")
    def test_the_same_task_twice_in_a_request_is_stored_once(self, client: FlaskClient) -> None:
        answer = predict(client, [task(1), task(1)]).json
        assert [bool(entry) for entry in answer["results"]] == [True, False]

    def test_no_tasks(self, client: FlaskClient) -> None:
        assert predict(client, []).json["results"] == []

    @pytest.mark.parametrize(
        ("config", "words"),
        [(NO_IMAGE, "shows no image"), (NO_CONTROL, "no control with labels draws on it"), (None, "configuration")],
    )
    def test_an_unusable_configuration_is_refused_in_words(self, client: FlaskClient, config: Any, words: str) -> None:
        answer = predict(client, [task(1), task(2)], config)
        assert answer.status_code == 400
        assert words in answer.json["error"]
        assert answer.json["results"] == [[], []]

    @pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b'{"tasks": 5}', b'{"tasks": null}'])
    def test_a_body_that_is_no_request(self, client: FlaskClient, body: bytes) -> None:
        answer = client.post("/predict", data=body, content_type="application/json")
        assert answer.status_code == 400
        assert answer.json["error"]

    def test_without_redis(self, checkpoint: Any) -> None:
        client = create_app(app_settings("redis://127.0.0.1:1/0", checkpoint)).test_client()
        answer = predict(client, [task(1), task(2)])
        assert answer.status_code == 503
        assert "cannot reach its Redis" in answer.json["error"]
        assert answer.json["results"] == [[], []]

    @pytest.mark.slow
    def test_requests_that_wait_do_not_take_every_thread(
        self, redis_db: str, checkpoint: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("backend.web.protocol.MAX_WAITING_REQUESTS", 1)
        app = create_app(app_settings(redis_db, checkpoint, LASAGNA_PREDICT_DEADLINE="2"))
        waiting = threading.Thread(target=lambda: predict(app.test_client(), [task(1), task(2)]))
        waiting.start()
        store = Store(connect(redis_db))
        wait_until(lambda: store.counts()["queued"] == 2)
        started = time.monotonic()
        assert predict(app.test_client(), [task(3), task(4)]).json["waiting"] == 2
        assert time.monotonic() - started < 1
        waiting.join()
        store.redis.close()


class TestInteractive:
    CLICK = {  # noqa: RUF012
        "id": "k", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "is_positive": True,
        "original_width": 64, "original_height": 48, "value": {"x": 40.0, "y": 40.0, "keypointlabels": ["Cat"]},
    }  # fmt: skip

    def test_without_a_worker_answers_a_dict_and_says_why(self, client: FlaskClient) -> None:
        answer = predict(client, [task(1)], params={"context": {"result": [self.CLICK]}}).json
        assert answer["results"][0]["result"] == []
        assert "is `lasagna worker` running?" in answer["errors"]["0"]

    def test_a_task_without_image(self, client: FlaskClient) -> None:
        answer = predict(client, [{"id": 1, "data": {}}], params={"context": {"result": [self.CLICK]}}).json
        assert answer["results"][0]["result"] == []
        assert "no field" in answer["errors"]["0"]


# Bodies as Label Studio sends them, cut down to what matters. Things are named in the singular or the plural.
PROJECT_BODY = {"id": 33, "title": "t", "label_config": CONFIG, "created_at": "2026-11-23T01:38:09.713245Z"}
ANNOTATION = {"id": 10, "task": 73, "result": [], "was_cancelled": False, "ground_truth": False}
EVENTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"action": "ANNOTATION_CREATED", "annotation": ANNOTATION, "task": {"id": 73}},
        {"tasks": [73], "annotations": [10]},
    ),
    (
        {"action": "ANNOTATION_UPDATED", "annotation": ANNOTATION, "task": {"id": 73}},
        {"tasks": [73], "annotations": [10]},
    ),
    ({"action": "ANNOTATIONS_CREATED", "annotation": [ANNOTATION]}, {"tasks": [73], "annotations": [10]}),
    ({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 6}]}, {"tasks": [], "annotations": [6]}),
    (  # an import: the tasks that came with an annotation count
        {"action": "TASKS_CREATED", "tasks": [{"id": 76, "total_annotations": 1}, {"id": 77, "total_annotations": 0}]},
        {"tasks": [76], "annotations": []},
    ),
    ({"action": "TASKS_DELETED", "tasks": [{"id": 73}]}, {"tasks": [73], "annotations": []}),
    ({"action": "PROJECT_UPDATED"}, {"tasks": [], "annotations": []}),
    ({"action": "START_TRAINING"}, {"tasks": [], "annotations": []}),
    ({"action": "SOMETHING_NEW", "annotation": "?", "tasks": 5}, {"tasks": [], "annotations": []}),
]


class TestWebhook:
    @pytest.mark.parametrize(("body", "noted"), EVENTS, ids=[body["action"] for body, _ in EVENTS])
    def test_is_acknowledged_at_once_and_noted(
        self, client: FlaskClient, store: Store, body: dict[str, Any], noted: dict[str, Any]
    ) -> None:
        client.get("/health")  # the first request connects
        started = time.monotonic()
        answer = client.post("/webhook", json={**body, "project": PROJECT_BODY})
        assert time.monotonic() - started < 0.2
        assert answer.status_code == 201
        [event] = store.events()
        assert event["action"] == body["action"]
        assert event["project"] == project_uid(PROJECT_BODY)
        assert {name: json.loads(event[name]) for name in ("tasks", "annotations")} == noted

    def test_a_changed_configuration_is_noted(
        self, redis_db: str, checkpoint: Any, store: Store, tmp_path: Path
    ) -> None:
        """Its labels, and what of it is not served, which the status page shows. Of a project that was connected."""
        client = create_app(app_settings(redis_db, checkpoint, LASAGNA_REGISTRY=str(tmp_path))).test_client()
        client.post("/setup", json=TestSetup.BODY)
        told = store.told(PROJECT)
        changed = CONFIG.replace('<Label value="Dog"/>', '<Label value="Fox"/>').replace(
            "</View>", '<VectorLabels name="line" toName="image"><Label value="Wire"/></VectorLabels></View>'
        )
        made = datetime.fromtimestamp(made_at(PROJECT), UTC).isoformat()
        body = {"id": 3, "created_at": made, "label_config": changed}
        for project in (body, {**body, "id": 4}, {**body, "id": True}, {**body, "label_config": "<View>"}, []):
            assert client.post("/webhook", json={"action": "PROJECT_UPDATED", "project": project}).status_code == 201
        histories = LabelHistories(tmp_path)
        assert [set(seen.labels["image"]) for seen in histories.of(PROJECT).seen] == [
            {"Cat", "Dog", "Sky", "Bird"},
            {"Cat", "Fox", "Sky", "Bird"},
        ]
        assert histories.of("4").seen == ()
        assert any('<VectorLabels name="line"> is not served' in part for part in store.project(PROJECT).not_served)
        assert "VectorLabels" in client.get("/status").text
        assert store.told(PROJECT) == pytest.approx(told, abs=30)
        assert store.project(PROJECT).token == TOKEN

    def test_without_redis_is_acknowledged_all_the_same(self, checkpoint: Any) -> None:
        client = create_app(app_settings("redis://127.0.0.1:1/0", checkpoint)).test_client()
        assert client.post("/webhook", json={"action": "PROJECT_UPDATED"}).status_code == 201


class TestBasicAuth:
    @pytest.fixture
    def client(self, redis_db: str, checkpoint: Any) -> FlaskClient:
        return create_app(app_settings(redis_db, checkpoint, LASAGNA_BASIC_AUTH="label:st:udio")).test_client()

    @pytest.mark.parametrize("auth", [None, ("label", "wrong"), ("other", "st:udio"), ("label", ""), ("lab", "el:st")])
    def test_refuses(self, client: FlaskClient, auth: tuple[str, str] | None) -> None:
        for path in ("/setup", "/predict"):
            answer = client.post(path, json={"tasks": []}, auth=auth)
            assert answer.status_code == 401
            assert "user name and password" in answer.json["error"]
            assert "WWW-Authenticate" in answer.headers
        assert client.get("/versions", auth=auth).status_code == 401

    def test_lets_in(self, client: FlaskClient) -> None:
        assert client.get("/versions", auth=("label", "st:udio")).status_code == 200

    def test_health_alone_is_open(self, client: FlaskClient) -> None:
        rules = [rule for rule in client.application.url_map.iter_rules() if rule.rule not in ("/", "/health")]
        assert len(rules) > 4
        for rule in rules:
            path = "/".join("1" if part.startswith("<") else part for part in rule.rule.split("/"))
            for method in rule.methods or ():
                assert client.open(path, method=method).status_code == 401, (method, path)
        assert client.get("/health").status_code == 200
        assert client.get("/nothing").status_code == 401

    @pytest.mark.parametrize("action", ["ANNOTATION_CREATED", "START_TRAINING"])
    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            ({}, 401),
            ({"headers": {"X-Lasagna-Secret": "other"}}, 401),
            ({"headers": {"X-Lasagna-Secret": ""}}, 401),
            ({"query_string": {"secret": "s3cret "}}, 401),
            ({"auth": ("label", "wrong")}, 401),
            ({"auth": ("label", "st:udio")}, 201),  # what Label Studio sends to http://label:st:udio@host/webhook
            ({"headers": {"X-Lasagna-Secret": "s3cret"}}, 201),
            ({"query_string": {"secret": "s3cret"}}, 201),
        ],
        ids=str,
    )
    def test_a_webhook_needs_the_password_or_the_secret(
        self, redis_db: str, checkpoint: Any, store: Store, action: str, request_: dict[str, Any], status: int
    ) -> None:
        given = {"LASAGNA_BASIC_AUTH": "label:st:udio", "LASAGNA_WEBHOOK_SECRET": "s3cret"}
        client = create_app(app_settings(redis_db, checkpoint, **given)).test_client()
        answer = client.post("/webhook", json={"action": action}, **request_)
        assert answer.status_code == status
        assert len(store.events()) == (status == 201)
        assert status == 201 or "Settings > Webhooks" in answer.json["error"]

    def test_the_secret_opens_the_webhook_alone(self, redis_db: str, checkpoint: Any) -> None:
        given = {"LASAGNA_BASIC_AUTH": "label:st:udio", "LASAGNA_WEBHOOK_SECRET": "s3cret"}
        client = create_app(app_settings(redis_db, checkpoint, **given)).test_client()
        assert client.get("/versions", headers={"X-Lasagna-Secret": "s3cret"}).status_code == 401
        assert client.get("/versions", query_string={"secret": "s3cret"}).status_code == 401

    def test_a_secret_without_a_password_is_refused(self, redis_db: str, checkpoint: Any) -> None:
        with pytest.raises(ConfigError, match="LASAGNA_BASIC_AUTH=USER:PASSWORD too"):
            create_app(app_settings(redis_db, checkpoint, LASAGNA_WEBHOOK_SECRET="s3cret"))


class TestLimits:
    @pytest.mark.parametrize(
        ("limit", "status", "words"),
        [
            ({"LASAGNA_MAX_REQUEST_TASKS": "2"}, 400, "has 3 tasks, the limit is 2 (LASAGNA_MAX_REQUEST_TASKS)"),
            ({"LASAGNA_MAX_REQUEST_BYTES": "100"}, 413, "more than 100 bytes, the limit (LASAGNA_MAX_REQUEST_BYTES)"),
            ({"LASAGNA_MAX_LABELS": "2"}, 400, "has 3 classes, the limit is 2 (LASAGNA_MAX_LABELS)"),
        ],
        ids=["tasks", "bytes", "labels"],
    )
    def test_say_what_was_too_much(
        self, redis_db: str, checkpoint: Any, limit: dict[str, str], status: int, words: str
    ) -> None:
        client = create_app(app_settings(redis_db, checkpoint, **limit)).test_client()
        answer = predict(client, [task(1), task(2), task(3)])
        assert answer.status_code == status
        assert words in answer.json["error"]

    def test_a_deeply_nested_body(self, client: FlaskClient) -> None:
        body = b'{"tasks": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
        assert client.post("/predict", data=body, content_type="application/json").status_code == 400


class TestOther:
    def test_versions(self, client: FlaskClient, checkpoint: Any) -> None:
        assert client.get("/versions").json["versions"] == [checkpoint_version(checkpoint)]

    @pytest.mark.parametrize(("method", "path", "status"), [("get", "/nothing", 404), ("get", "/predict", 405)])
    def test_errors_are_json(self, client: FlaskClient, method: str, path: str, status: int) -> None:
        answer = getattr(client, method)(path)
        assert answer.status_code == status
        assert answer.json["error"]

    def test_without_redis_url(self) -> None:
        with pytest.raises(ConfigError, match="LASAGNA_REDIS_URL"):
            create_app(Settings.load({}))


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a  b\nc", "a b c"),
        ("0.3 s → 0.4 s …", "0.3 s -> 0.4 s ..."),
        ("no 'Größe' in Zürich", "no 'Größe' in Zürich"),
        ("'небо' and 'трава', not \"небо\", 'небо'", "[name 1] and [name 2], not [name 3], [name 1]"),
        ('<Image name="图">: value=$图 is new', "<Image name=[name 1]>: value=[name 2] is new"),
        ("x" * 400, "x" * 300),
        ("a\x00b\x7fc\x9fd", "a?b?c?d"),
    ],
)
def test_status_lines(message: str, line: str) -> None:
    found = status_line(message)
    assert found.startswith(line)
    assert len(found) <= 300
    found.encode("latin-1")
