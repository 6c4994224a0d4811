"""The status page, its button in a real browser, and the gate's reports."""

import html
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from rq.executions import Execution
from werkzeug.serving import make_server
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from backend.app import create_app
from backend.loop.trainings import Trainings
from backend.queue.counters import REASONS
from backend.queue.made import Made
from backend.queue.store import Project, Store, Work
from backend.registry.registry import Registry
from backend.web.cross_site import is_cross_site
from backend.web.prelabel_jobs import PrelabelJobs
from backend.web.status_page import _KINDS
from backend.worker.rq_worker import LasagnaWorker
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, PREDICTION, PROJECT, TOKEN

NASTY = '<script>alert("x")</script>'


@pytest.fixture
def app(settings: Settings, registry: Registry) -> Any:
    return create_app(settings.replaced(registry=str(registry.folder)))


@pytest.fixture
def client(app: Any) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def works(store: Store) -> list[str]:
    """One work in each state, three failed."""
    store.publish_model({"version": "tiny-1"})
    store.keep_project(PROJECT, Project("https://label.example.org", TOKEN))
    keys = [e.key for e in store.register([Work(PROJECT, n, f"/{n}.png", "c", "tiny-1") for n in range(1, 8)], lease=0)]
    store.start(keys[1:], "job")
    for key in keys[2:4]:
        store.finish(key, PREDICTION)
    post = next(iter(store.take_posts()), None)
    assert post is not None
    store.posted(post.key, 11)
    store.fail(keys[4], f"the file {NASTY} is broken", "image")
    store.fail(keys[5], "the file b.png is broken", "image")
    store.fail(keys[6], "RuntimeError: out of memory", "model")
    return keys


class TestPage:
    def test_shows_what_there_is(
        self, client: FlaskClient, works: list[str], store: Store, registry: Registry, make: Any, tmp_path: Path
    ) -> None:
        jobs = PrelabelJobs(store)
        id = jobs.add(PROJECT, tab=7)
        jobs.claim(id, "me")
        jobs.note(id, state="running", title=f"Cats {NASTY}", total=10, started=store.now() - 10, predicted=4,
                  seen=store.now())  # fmt: skip
        report = tmp_path / "report.html"
        report.write_text("<h1>the gate's page</h1>")
        given: dict[str, Any] = {"project": PROJECT, "parent": "", "snapshot": "", "metrics": {}, "reports": [report]}
        champion, candidate = registry.add(make(7.0), **given), registry.add(make(8.0), **given)
        registry.promote(PROJECT, champion.id, "better")
        Trainings(store).note(PROJECT, state="running", stage="train", step=40, steps=160, left=200)
        answer = client.get("/status")
        assert answer.status_code == 200
        page = " ".join(answer.text.split())
        for words in (
            "Model tiny-1.",
            "No worker predicts",
            "<b>3</b><span>failed in 7 days</span>",
            "Image cannot be used",
            "the file b.png is broken",
            "Model raised an error",
            'href="https://label.example.org/projects/3/data?task=6"',
            "4 of 10",
            "24.0 per minute",
            "15 s left",
            "tab 7",
            f'href="gate/{champion.id}"',
            f'href="gate/{candidate.id}"',
            "train 40 of 160, 3 min left",
            'href="report/3"',
        ):
            assert words in page, words
        assert "<script" not in page
        assert 'http-equiv="refresh"' in page
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert client.get(f"/gate/{champion.id}").text == "<h1>the gate's page</h1>"

    @pytest.mark.parametrize(
        ("ended", "words"),
        [
            ({"outcome": "refused", "summary": f"{NASTY} is not fine-tuned"}, "is not fine-tuned; 2 corrected since"),
            ({"outcome": "candidate", "summary": "worse"}, "<small>last one candidate; 2 corrected since</small>"),
        ],
    )
    def test_how_the_last_fine_tune_ended(
        self, client: FlaskClient, works: list[str], store: Store, ended: dict[str, str], words: str
    ) -> None:
        trainings = Trainings(store)
        trainings.note(PROJECT, state="idle", **ended)
        trainings.add_changes(PROJECT, ["1", "2"])
        page = client.get("/status").text
        assert words in page
        assert "<script" not in page

    def test_predictions_that_are_outdated(self, client: FlaskClient, store: Store) -> None:
        """By what was delivered, without asking Label Studio; a task that is annotated or gone counts no more."""
        store.publish_model({"version": "tiny-1"})
        config = "<Label value='Horse'/>"
        for xml in (CONFIG.replace("</BrushLabels>", f"{config}</BrushLabels>"), CONFIG):
            body = {"project": PROJECT, "schema": xml, "hostname": "https://label.example.org", "access_token": TOKEN}
            version = client.post("/setup", json={**body, "extra_params": {"instant": False}}).json["model_version"]
            for number in range(1, 5) if xml != CONFIG else (4,):
                [entry] = store.register([Work(PROJECT, number, "{}", "c", version)], lease=0)
                store.start([entry.key], "job")
                store.finish(entry.key, PREDICTION, "", Made(version, "d"))
                post = next(iter(store.take_posts()), None)
                assert post is not None
                store.posted(post.key, number)

        def shown() -> str:
            return " ".join(html.unescape(client.get("/status").text).split())

        assert "1 prediction up to date" in shown()
        assert "3 outdated" in shown()
        assert "3: the label 'Horse' was removed" in shown()
        assert "<code>lasagna prelabel 3</code>" in shown()
        for action, tasks in (("ANNOTATION_CREATED", {"task": {"id": 1}}), ("TASKS_DELETED", {"tasks": [{"id": 2}]})):
            client.post("/webhook", json={"action": action, "project": {"id": 3, "label_config": CONFIG}, **tasks})
        assert "1: the label 'Horse' was removed" in shown()
        restored = {"id": 3, "label_config": CONFIG.replace("</BrushLabels>", f"{config}</BrushLabels>")}
        client.post("/webhook", json={"action": "PROJECT_UPDATED", "project": restored})
        assert "1: the label 'Horse' was added" in shown(), "what was outdated answers what is asked again"

    def test_of_nothing(self, client: FlaskClient) -> None:
        page = client.get("/status").text
        assert "Nothing to do." in page
        assert "No project is connected yet" in page

    def test_workers(self, client: FlaskClient, store: Store) -> None:
        """Only living ones; one that trains does not predict."""
        training, killed = LasagnaWorker(store.redis, store, 1, ["train"]), LasagnaWorker(store.redis, store, 1)
        for worker in (training, killed):
            worker.register_birth()
        assert "No worker predicts" not in client.get("/status").text
        store.redis.hset(killed.key, "last_heartbeat", "2026-01-01T00:00:00.000000Z")
        page = client.get("/status").text
        assert "No worker predicts" in page
        assert training.name in page
        assert killed.name not in page

    def test_a_sign_of_life_after_a_jobs_end_is_no_error(self, client: FlaskClient, store: Store) -> None:
        """What RQ leaves then: the record of a job's run with nothing but its time."""
        worker = LasagnaWorker(store.redis, store, 1)
        worker.register_birth()
        run = Execution(id="run", job_id="job", connection=store.redis)
        store.redis.sadd(worker.executions_key, run.composite_key)
        store.redis.hset(run.key, "last_heartbeat", "1790000000.0")
        answer = client.get("/status")
        assert answer.status_code == 200
        assert worker.name in answer.text

    def test_without_redis(self, checkpoint: Path) -> None:
        environ = {"LASAGNA_REDIS_URL": "redis://127.0.0.1:1/0", "LASAGNA_MODEL": str(checkpoint)}
        answer = create_app(Settings.load(environ)).test_client().get("/status")
        assert answer.status_code == 503
        assert "Redis cannot be reached" in answer.text

    def test_every_kind_of_reason_has_words(self) -> None:
        assert set(_KINDS) == set(REASONS)

    def test_the_password_is_asked_for(self, settings: Settings) -> None:
        client = create_app(settings.replaced(basic_auth="a:secret")).test_client()
        for path in ("/status", "/gate/x", "/jobs"):
            assert client.get(path).status_code == 401
        assert client.post("/status/retry").status_code == 401


class TestRetry:
    @pytest.mark.parametrize(
        ("form", "left"),
        [({}, 0), ({"project": "3"}, 0), ({"project": "3", "kind": "image"}, 1), ({"project": "4"}, 3)],
        ids=str,
    )
    def test_puts_back(self, client: FlaskClient, works: list[str], store: Store, form: Any, left: int) -> None:
        answer = client.post("/status/retry", data=form)
        assert answer.status_code == 303
        assert answer.headers["Location"] == f"../status?queued={3 - left}&posted=0"
        assert store.counts()["failed"] == left
        said = client.get(f"/status?queued={3 - left}&posted=0").text
        assert f"{3 - left} task{'' if left == 2 else 's'} queued again" in said

    @pytest.mark.parametrize("form", [{"project": "3; x"}, {"kind": "nothing"}], ids=str)
    def test_of_what_is_not_there(self, client: FlaskClient, works: list[str], store: Store, form: Any) -> None:
        assert client.post("/status/retry", data=form).status_code == 400
        assert store.counts()["failed"] == 3

    @pytest.mark.parametrize("path", ["/status/retry", "/jobs", "/webhook", "/predict", "/setup"])
    def test_another_site_cannot(self, client: FlaskClient, works: list[str], store: Store, path: str) -> None:
        answer = client.post(path, headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 403
        assert "another site" in answer.json["error"]
        assert store.counts()["failed"] == 3


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),  # Label Studio, curl
        ({"Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "none"}, False),  # typed by the user
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://backend:9090"}, True),
        ({"Origin": "http://backend:9090"}, False),
        ({"Origin": "https://backend:9090"}, False),  # behind a proxy that speaks TLS
        ({"Origin": "http://backend:8080"}, True),
        ({"Origin": "https://evil.example"}, True),
        ({"Origin": "null"}, True),
        ({"Origin": "http://[backend:9090"}, True),
    ],
    ids=str,
)
def test_cross_site(headers: dict[str, str], refused: bool) -> None:
    def request(method: str) -> Request:
        return EnvironBuilder(method=method, base_url="http://backend:9090/", headers=headers).get_request()

    assert is_cross_site(request("POST")) == refused
    assert is_cross_site(request("DELETE")) == refused
    assert not is_cross_site(request("GET"))


class TestGate:
    @pytest.mark.parametrize(
        "name",
        [
            "none-1",
            "..",
            "%2e%2e",
            "..%2f..%2freport",
            "%2fetc%2fpasswd",
            ".adding-x",
            "nano-1%00",
            "a%5c..%5cb",
            "%ff",
        ],
    )
    def test_what_is_no_version(self, client: FlaskClient, registry: Registry, name: str) -> None:
        (registry.folder / "versions").mkdir(parents=True)
        (registry.folder.parent / "report.html").write_text("classified")
        (registry.folder / "report.html").write_text("classified")
        answer = client.get(f"/gate/{name}")
        assert answer.status_code == 404
        assert "classified" not in answer.text

    def test_a_version_without_a_report(self, client: FlaskClient, registry: Registry, make: Any) -> None:
        version = registry.add(make(7.0), project="3", parent="", snapshot="", metrics={})
        answer = client.get(f"/gate/{version.id}")
        assert answer.status_code == 404
        assert "no report of the gate" in answer.json["error"]


@pytest.fixture
def address(app: Any, serving: Any) -> str:
    return str(serving(make_server("127.0.0.1", 0, app, threaded=True)))


@pytest.mark.browser
def test_in_a_browser(
    address: str, works: list[str], store: Store, chromium: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.web.status_page._REFRESH", 600)  # not between two looks at the page
    chromium.get_log("browser")  # what earlier pages said
    try:
        for width in (1280, 390):
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            chromium.get(address + "/status")
            assert chromium.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        chromium.get(address + "/status")
        buttons = chromium.find_elements("css selector", "button")
        assert [button.text for button in buttons] == ["Try all 3 again", "Try again", "Try again"]
        buttons[1].click()
        notice = eventually(lambda: chromium.find_elements("xpath", "//*[contains(text(), 'queued again')]"))[0].text
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert notice == "1 task queued again, 0 predictions to be posted again."
    assert store.counts()["failed"] == 2
    assert [line["message"] for line in chromium.get_log("browser") if "favicon" not in line["message"]] == []
