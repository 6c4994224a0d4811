"""Requests as Label Studio sends them, damaged at random: never a 500, one entry per task, and a worker that goes on.

The same examples each time; more and others: `pytest tests/backend/web/test_fuzz.py --examples 5000`.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from backend.app import create_app
from backend.queue import jobs
from backend.queue.store import Store
from backend.worker.rq_worker import LasagnaWorker
from backend.worker.runtime import Runtime
from lasagna import Lasagna
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, PROJECT, TOKEN, StubLabelStudio

REGION = {
    "id": "brush001", "from_name": "brush", "to_name": "image", "type": "brushlabels", "score": 0.91,
    "original_width": 64, "original_height": 48, "image_rotation": 0,
    "value": {"format": "rle", "rle": [0, 18, 192, 0, 57, 27], "brushlabels": ["Cat"]},
}  # fmt: skip
TASK = {
    "id": 81, "data": {"image": "/data/upload/3/81.png"}, "meta": {}, "project": 3, "inner_id": 1, "overlap": 1,
    "created_at": "2026-11-23T01:42:02.778945Z", "is_labeled": False, "updated_by": None, "file_upload": 90,
    "annotations": [], "predictions": [{"id": 71, "model_version": "old", "score": 0.5, "result": [REGION]}],
}  # fmt: skip
CLICK = {
    "id": "c1", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "is_positive": True,
    "original_width": 64, "original_height": 48, "image_rotation": 0,
    "value": {"x": 40.0, "y": 40.0, "width": 0.3, "keypointlabels": ["Cat"]},
}  # fmt: skip
BOX = {**CLICK, "type": "rectanglelabels", "from_name": "box",
       "value": {"x": 10, "y": 10, "width": 50, "height": 40, "rotation": 0, "rectanglelabels": ["Dog"]}}  # fmt: skip
SETUP = {
    "project": PROJECT, "schema": CONFIG, "hostname": "http://127.0.0.1:8080", "access_token": TOKEN,
    "extra_params": '{"threshold": 0.5, "exclusive": false, "chunk_size": 2, "train_when": "every 20"}',
}  # fmt: skip
PREDICT = {
    "tasks": [TASK, {**TASK, "id": 82}], "project": PROJECT, "label_config": CONFIG,
    "params": {"login": None, "password": None, "context": None},
}  # fmt: skip
ANNOTATION = {"id": 6, "task": 81, "result": [REGION], "was_cancelled": False, "completed_by": {"id": 1}, "draft": None}
PROJECT_BODY = {"id": 33, "title": "p", "label_config": CONFIG, "control_weights": {"brush": {"overall": 1.0}}}
WEBHOOKS = [
    {"action": "ANNOTATION_CREATED", "annotation": ANNOTATION, "task": TASK, "project": PROJECT_BODY},
    {"action": "ANNOTATIONS_CREATED", "annotation": [ANNOTATION], "task": [TASK], "project": PROJECT_BODY},
    {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 6}], "project": PROJECT_BODY},
    {"action": "TASKS_CREATED", "tasks": [{**TASK, "total_annotations": 1}], "project": PROJECT_BODY},
    {"action": "PROJECT_UPDATED", "project": PROJECT_BODY},
    {"action": "START_TRAINING", "project": PROJECT_BODY},
]

text = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["", " ", "\x00", "\ud800", "../../etc/passwd", "a/b", "x" * 5000, "1" * 400, "é" * 300, "-1", "1e999", "{}",
         "[", "http://[", "http://x:99999/", "//", "s3://b/k", "$image", "<View>", "&lt;", "NaN", "every 0", "every x",
         "cron * * *", "*", "%00", "\u202e", "\r\nX: y"]
    ),
)  # fmt: skip
number = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**400, 1e308, -0.0]), st.booleans()
)
anything = st.recursive(
    st.one_of(st.none(), number, text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, whole: Any) -> Any:
    """A copy in which one to three places hold something else, are gone, doubled, or cut within."""
    body = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(body))
        if not places:
            return draw(anything)
        holder, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["replace", "replace", "remove", "double", "cut"]))
        if how == "replace":
            holder[key] = draw(anything)
        elif how == "remove":
            del holder[key]
        elif how == "double" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif how == "cut" and isinstance(holder[key], str):
            at = draw(st.integers(0, len(holder[key])))
            holder[key] = holder[key][:at] + draw(text) + holder[key][at + draw(st.integers(0, 9)) :]
    return body


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(inner):
        yield value, key
        yield from _places(one)


@pytest.fixture(scope="module")
def examples(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--examples") or 150)


@pytest.fixture
def environ(redis_db: str, checkpoint: Any) -> dict[str, str]:
    return {"LASAGNA_REDIS_URL": redis_db, "LASAGNA_MODEL": str(checkpoint), "LASAGNA_PREDICT_DEADLINE": "0"}


@pytest.fixture
def client(environ: dict[str, str]) -> FlaskClient:
    return create_app(Settings.load(environ)).test_client()


def fuzz(examples: int, whole: Any, check: Any, *, seeded: int = 1) -> None:
    """Runs `check` on so many damaged copies."""
    run = given(damaged(whole))(check)
    run = settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
    )(run)
    seed(seeded)(run)()


def post(client: FlaskClient, path: str, body: Any) -> None:
    send(client, path, body)


def send(client: FlaskClient, path: str, body: Any) -> Any:
    """The answer to a body as it is, also with NaN, huge numbers and lone surrogates in it."""
    data = json.dumps(body).encode("utf-8", "surrogatepass")
    answer = client.post(path, data=data, content_type="application/json")
    assert answer.status_code < 500, (path, answer.status, body)
    assert answer.is_json
    return answer


@pytest.mark.slow
def test_setup(client: FlaskClient, examples: int) -> None:
    def check(body: Any) -> None:
        answer = send(client, "/setup", body)
        assert "model_version" in answer.json or answer.json["error"]

    fuzz(examples, SETUP, check)


@pytest.mark.slow
@pytest.mark.parametrize("context", [None, {"result": [CLICK]}], ids=["batch", "click"])
def test_predict(client: FlaskClient, examples: int, context: Any) -> None:
    def check(body: Any) -> None:
        answer = send(client, "/predict", body)
        tasks = body.get("tasks") if isinstance(body, dict) else None
        if isinstance(tasks, list) and answer.status_code == 200:
            assert len(answer.json["results"]) in (len(tasks), 1 if context else len(tasks))
            assert None not in answer.json["results"]

    fuzz(examples, {**PREDICT, "params": {"context": context}}, check)


@pytest.mark.slow
def test_webhook(client: FlaskClient, examples: int) -> None:
    for whole in WEBHOOKS:
        fuzz(examples // 3, whole, lambda body: post(client, "/webhook", body))


@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
def test_bytes(client: FlaskClient, path: str) -> None:
    for data in (
        b"",
        b"\xff\xfe",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"1" * 5000,
        b'{"a":' * 3000,
        b"\x00" * 99,
        b"[" * 10**6,
    ):
        for kind in ("application/json", "text/plain", "multipart/form-data", ""):
            answer = client.post(path, data=data, content_type=kind)
            assert answer.status_code in (201, 400, 415), (data[:20], kind, answer.status)


def test_a_worker_goes_on(
    client: FlaskClient, environ: dict[str, str], store: Store, stub: StubLabelStudio, examples: int
) -> None:
    """Whatever the requests put into the queue: each task ends, and the last, a sound one, is predicted."""
    stub.add_tasks(2, first=81)
    send(client, "/setup", {**SETUP, "hostname": stub.url, "extra_params": None})

    fuzz(examples // 3, PREDICT, lambda body: post(client, "/predict", body), seeded=2)
    send(client, "/predict", {**PREDICT, "tasks": [{**TASK, "id": 82, "data": {"image": "/data/upload/3/82.png"}}]})
    chosen = Settings.load(environ)
    jobs.install(Runtime(Lasagna.from_pretrained(chosen.model, device="cpu"), chosen, store))
    try:
        LasagnaWorker(store.redis, store, batch_size=4).work(burst=True, logging_level="CRITICAL")
    finally:
        jobs.install(None)
    counts = store.counts()
    assert counts["running"] == 0
    later = [key for key in store.keys("queued") if not store.is_waiting_for_label_studio(key)]
    assert later == []
    assert "82" in {fields["task"] for fields in store.fields(store.keys("ready"))}
    for fields in store.fields(store.keys("failed")):
        assert fields["reason"]


@pytest.mark.parametrize("whole", [[CLICK], [BOX]], ids=["point", "box"])
def test_a_click_is_answered(
    client: FlaskClient, environ: dict[str, str], store: Store, stub: StubLabelStudio, examples: int, whole: Any
) -> None:
    stub.add_tasks(2, first=81)
    send(client, "/setup", {**SETUP, "hostname": stub.url, "extra_params": None})
    chosen = Settings.load(environ)
    model = Lasagna.from_pretrained(chosen.model, device="cpu")
    runtime = Runtime(model, chosen, store)
    request = {
        "project": PROJECT, "version": model.version, "task": 81, "image": "/data/upload/3/81.png",
        "config": store.keep_config(CONFIG),
    }  # fmt: skip

    def check(context: Any) -> None:
        if isinstance(context, list):  # the web process sends nothing else
            sent = json.loads(json.dumps({**request, "context": context}))
            assert set(runtime.click(sent)) in ({"prediction"}, {"error"})

    fuzz(examples // 3, whole, check)
