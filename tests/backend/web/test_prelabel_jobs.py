"""`POST /jobs`: what it takes, that jobs are run, and by the next process where one is killed."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient

from backend.app import create_app
from backend.queue.store import Project, Store
from backend.studio.client import LabelStudioError
from backend.web import prelabel_jobs
from backend.web.prelabel_jobs import PrelabelJobs, PrelabelRunner, parse_request
from lasagna.errors import ConfigError
from lasagna.settings import Settings
from tests.backend.backend_helpers import TOKEN, Backend, StubLabelStudio, wait_until


@pytest.fixture
def client(settings: Settings) -> FlaskClient:
    """Of a web process that runs no jobs."""
    return create_app(settings).test_client()


class TestRequests:
    def test_is_accepted_and_can_be_followed(self, client: FlaskClient, store: Store) -> None:
        store.keep_project("3.17", Project("http://127.0.0.1:1", TOKEN))
        answer = client.post("/jobs", json={"project": 3, "tab": 7, "dry_run": True})
        assert answer.status_code == 202
        assert answer.headers["Location"] == f"/jobs/{answer.json['id']}"
        job = client.get(answer.headers["Location"]).json
        assert job == answer.json
        assert (job["project"], job["tab"], job["dry_run"], job["refresh"]) == (3, 7, True, False)
        assert (job["state"], job["through"], job["seconds_left"]) == ("queued", 0, None)
        assert client.get("/jobs").json == {"jobs": [job]}

    def test_a_project_whose_label_studio_is_not_known(self, client: FlaskClient) -> None:
        answer = client.post("/jobs", json={"project": 3})
        assert answer.status_code == 503
        assert "LASAGNA_LABEL_STUDIO_URL" in answer.json["error"]
        assert client.get("/jobs").json == {"jobs": []}

    def test_a_job_is_cancelled(self, client: FlaskClient, store: Store) -> None:
        id = PrelabelJobs(store).add("3")
        answer = client.delete(f"/jobs/{id}")
        assert (answer.status_code, (answer.json or {})["state"]) == (202, "cancelled")
        assert (client.delete(f"/jobs/{id}").json or {})["state"] == "cancelled"
        assert client.delete("/jobs/0123").status_code == 404

    def test_unknown_job(self, client: FlaskClient) -> None:
        answer = client.get("/jobs/0123")
        assert answer.status_code == 404
        assert "no job '0123'" in answer.json["error"]

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (None, "no JSON object|not a JSON object"),
            ([3], "not a JSON object"),
            ({}, "project is a number"),
            ({"project": "3"}, "project is a number"),
            ({"project": True}, "project is a number"),
            ({"project": 0}, "project is a number"),
            ({"project": 1 << 40}, "project is a number"),
            ({"project": 3, "tab": "seven"}, "tab is a number"),
            ({"project": 3, "refresh": 1}, "refresh is true or false"),
            ({"project": 3, "dry-run": True}, "dry-run: not known here"),
        ],
        ids=str,
    )
    def test_cannot_be_read(self, body: Any, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            parse_request(body)


class TestRecords:
    def test_a_command_that_was_killed_is_interrupted_and_nobody_else_runs_it(self, store: Store) -> None:
        jobs = PrelabelJobs(store)
        id = jobs.add("3", by="command")
        jobs.claim(id, "me")
        jobs.note(id, state="running", started=store.now(), total=10)
        assert (jobs.of(id) or {})["state"] == "running"
        jobs.drop_claim(id)
        assert (jobs.of(id) or {})["state"] == "interrupted"
        assert jobs.unfinished() == []

    def test_one_process_runs_a_job(self, store: Store) -> None:
        jobs = PrelabelJobs(store)
        id = jobs.add("3")
        assert jobs.unfinished() == [id]
        assert [jobs.claim(id, "one"), jobs.claim(id, "two")] == [True, False]
        jobs.end(id, "done")
        assert jobs.unfinished() == []

    def test_a_claim_is_held_however_long_something_takes(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prelabel_jobs, "_CLAIM", 1)
        jobs = PrelabelJobs(store)
        id = jobs.add("3")
        with jobs.holding(id, "me"):
            jobs.drop_claim(id)
            wait_until(lambda: not jobs.claim(id, "another") or jobs.drop_claim(id))


class _Outages(PrelabelRunner):
    """Label Studio is gone each time; before that, so many tasks got through."""

    tries: Iterator[int]

    def _work(self, id: str, advance: Callable[[str], None]) -> None:
        for _ in range(next(self.tries)):
            advance("")
        raise LabelStudioError("Label Studio is gone")


@pytest.mark.parametrize(
    ("tries", "left"),
    [((0,) * 9, 4), ((0, 0, 0, 7, 0, 0, 0, 0, 0), 2)],
    ids=["gone all the time", "there in between"],
)
def test_a_job_fails_when_label_studio_is_gone_for_too_long_at_a_stretch(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch, tries: tuple[int, ...], left: int
) -> None:
    clock = SimpleNamespace(seconds=0.0)
    clock.monotonic = lambda: clock.seconds
    clock.sleep = lambda seconds: setattr(clock, "seconds", clock.seconds + seconds)
    monkeypatch.setattr(prelabel_jobs, "time", clock)
    runner = _Outages(settings.replaced(delivery_timeout=12.0))
    runner.tries = iter(tries)
    id = PrelabelJobs(store).add("3")
    runner._patiently(id)
    assert len(list(runner.tries)) == left
    assert (PrelabelJobs(store).of(id) or {})["state"] == "failed"


def states(backend: Backend, id: str) -> Any:
    return requests.get(f"{backend.url}/jobs/{id}", timeout=10).json()


@pytest.fixture
def of_stub(backend: Backend, stub: StubLabelStudio, store: Store) -> Backend:
    """Knows where Label Studio is; the model is that of the fixture `working`."""
    backend.environ |= {"LASAGNA_LABEL_STUDIO_URL": stub.url, "LASAGNA_LABEL_STUDIO_TOKEN": TOKEN}
    store.publish_model({"version": "tiny-1"})
    return backend


@pytest.mark.slow
def test_a_job_goes_on_in_the_next_process(
    of_stub: Backend, stub: StubLabelStudio, store: Store, request: pytest.FixtureRequest
) -> None:
    stub.add_tasks(6)
    web = of_stub.serve()
    id = requests.post(of_stub.url + "/jobs", json={"project": 3}, timeout=10).json()["id"]
    wait_until(lambda: store.counts()["queued"] == 6)
    assert states(of_stub, id)["state"] == "running"
    web.kill()
    stub.add_tasks(2, first=10)
    PrelabelJobs(store).drop_claim(id)  # as it does by itself after a while
    of_stub.serve()
    request.getfixturevalue("working")
    found = wait_until(lambda: (job := states(of_stub, id))["state"] == "done" and job, what="the end of the job")
    assert (found["total"], found["predicted"] + found["had_one"], found["failed"], found["through"]) == (8, 6, 2, 8)
    assert found["failures"] == {"3": "the image is broken", "6": "the image is broken"}
    assert sorted(p["task"] for p in stub.predictions) == [1, 2, 4, 5, 10, 11]

    dry = requests.post(of_stub.url + "/jobs", json={"project": 3, "dry_run": True}, timeout=10).json()["id"]
    found = wait_until(lambda: (job := states(of_stub, dry))["state"] == "done" and job, what="the dry run")
    assert (found["plan"]["missing"], found["plan"]["had_one"]) == (2, 6)
    assert len(stub.predictions) == 6

    stub.status["/api/projects/3"] = 404
    gone = requests.post(of_stub.url + "/jobs", json={"project": 3}, timeout=10).json()["id"]
    found = wait_until(lambda: (job := states(of_stub, gone))["state"] == "failed" and job, what="the failure")
    assert "answered 404" in found["reason"]

    stub.status["/api/projects/3"] = 502
    waits = requests.post(of_stub.url + "/jobs", json={"project": 3}, timeout=10).json()["id"]
    wait_until(lambda: "tried again" in (states(of_stub, waits)["reason"] or ""))
    stub.status.clear()
    found = wait_until(lambda: (job := states(of_stub, waits))["state"] == "done" and job, what="the end")
    assert (found["had_one"], found["reason"]) == (6, None)
