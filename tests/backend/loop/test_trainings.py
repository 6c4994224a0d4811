"""When a project is trained: policies, counting, coalescing, what is found at a start."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backend.app import create_app
from backend.commands.train import train
from backend.instant.heads import ProjectHeads
from backend.loop.trainings import Policy, Trainings, Triggers, new_job, unfinished_jobs
from backend.queue.jobs import queue
from backend.queue.store import Project, Store
from backend.registry.abilities import cannot, why_not_trained
from backend.registry.registry import Registry
from backend.studio.client import LabelStudioError
from backend.studio.project_id import project_uid
from backend.web.predictions import parse_parameters
from lab.bench.peer_models import write_model
from lasagna.commands.cli import main
from lasagna.contract.model import Abilities
from lasagna.errors import ConfigError, ServiceError
from lasagna.instant.store import HeadStore
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, PROJECT, TOKEN, wait_until
from tests.lasagna.instant.instant_world import made_correction


class Loop:
    """The web process's webhook, and the one who decides, without its thread."""

    def __init__(self, folder: Path, settings: Settings, store: Store) -> None:
        settings = settings.replaced(registry=str(folder))
        self.folder, self.store, self.settings = folder, store, settings
        self.client = create_app(settings).test_client()
        self.missed: set[int] = set()
        self.triggers = Triggers(settings, store, folder, lambda project: self.missed)
        self.set_policy("every 3")

    def set_policy(self, text: str) -> None:
        self.store.keep_project(PROJECT, Project("http://127.0.0.1:1", "", "", None, text))

    def event(self, action: str, **body: Any) -> None:
        answer = self.client.post(
            "/webhook", json={"action": action, "project": {"id": int(PROJECT.split(".")[0])}, **body}
        )
        assert answer.status_code == 201

    def submit(self, *tasks: int) -> None:
        for task in tasks:
            self.event("ANNOTATION_CREATED", task={"id": task}, annotation={"id": 100 + task, "task": task})

    def state(self) -> dict[str, str]:
        """What is known of the project, after all events were read."""
        while self.triggers.read_events(0):
            pass
        return self.triggers.trainings.of(PROJECT)

    def jobs(self) -> list[str]:
        return unfinished_jobs(self.folder)

    def run(self, outcome: str = "candidate", during: Any = lambda: None) -> None:
        """A job as the training process runs it."""
        self.state()
        [id] = self.jobs()
        self.triggers.begin(PROJECT)
        during()
        self.state()
        self.triggers.end(PROJECT, id, {"outcome": outcome, "summary": "said", "version": "nano-1"})


@pytest.fixture
def loop(tmp_path: Path, settings: Settings, store: Store) -> Loop:
    return Loop(tmp_path / "registry", settings, store)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("auto", Policy(every=20, beside_head=100)),
        ("every 20", Policy(every=20)),
        (" Every 1 ", Policy(every=1)),
        ("cron 0 3 * * *", Policy(cron="0 3 * * *")),
        ("by hand", Policy()),
        ("never", Policy(by_button=False)),
    ],
)
def test_policies(text: str, policy: Policy) -> None:
    assert Policy.parse(text) == policy


@pytest.mark.parametrize("text", ["", "20", "every 0", "every x", "cron", "cron 61 * * * *", "sometimes"])
def test_what_is_no_policy(text: str) -> None:
    with pytest.raises(ConfigError, match='"every 20"'):
        Policy.parse(text)


@pytest.mark.parametrize("extra", ['{"train_when": "every 5", "threshold": 0.4}', {"train_when": "every 5"}])
def test_a_policy_from_the_extra_parameters(loop: Loop, extra: Any) -> None:
    body = {"project": PROJECT, "schema": CONFIG, "hostname": "", "access_token": "", "extra_params": extra}
    assert loop.client.post("/setup", json=body).status_code == 200
    kept = loop.store.project(PROJECT)
    assert kept.train == "every 5"
    assert "train_when" not in (kept.params or {})  # the model is not asked with it


def test_a_wrong_policy_is_refused_at_setup() -> None:
    with pytest.raises(ConfigError, match="when a project is trained"):
        parse_parameters({"train_when": "soon"})


def test_every_so_many_corrections(loop: Loop) -> None:
    loop.submit(1, 2, 1, 1)  # twice changed is one correction
    assert loop.state()["changed"] == "2"
    assert loop.jobs() == []
    loop.submit(3)
    assert loop.state()["state"] == "queued"
    [id] = loop.jobs()
    asked = json.loads((loop.folder / "jobs" / id / "job.json").read_text())
    assert (asked["project"], asked["reason"]) == (PROJECT, "3 corrections")
    [job] = queue(loop.store.redis, "train").jobs
    assert job.args == [PROJECT, id] or tuple(job.args) == (PROJECT, id)


def learnt(folder: Path, count: int) -> HeadStore:
    """The store of a project's heads after some corrections."""
    corrections = [made_correction(seed).numbered(seed + 1) for seed in range(count)]
    store = HeadStore(ProjectHeads(folder).folder(PROJECT, corrections[0].version))
    for correction in corrections:
        store.put(correction)
    store.refresh()
    return store


def test_a_fine_tune_waits_longer_while_a_head_draws(loop: Loop) -> None:
    head = learnt(loop.folder, 12).current()
    assert head is not None
    assert head.serves, head.decision.reason
    loop.set_policy("auto")
    loop.submit(*range(1, 25))
    assert loop.state()["changed"] == "24"
    assert loop.jobs() == [], "the head learns at once what a fine-tune would"
    assert loop.triggers.catch_up() == []
    assert loop.jobs() == []
    loop.submit(*range(25, 101))
    assert loop.state()["state"] == "queued"
    assert len(loop.jobs()) == 1


@pytest.mark.parametrize("why", ["none", "does not draw", "off", "damaged"])
def test_a_head_that_does_not_draw_changes_nothing(loop: Loop, why: str) -> None:
    if why != "none":
        store = learnt(loop.folder, 2 if why == "does not draw" else 12)
        head = store.current()
        assert head is not None
        assert head.serves == (why != "does not draw")
        if why == "damaged":
            (store.folder / "current.json").write_text("{")
    instant = False if why == "off" else None
    loop.store.keep_project(PROJECT, Project("http://127.0.0.1:1", "", "", None, "auto", instant=instant))
    loop.submit(*range(1, 20))
    assert loop.state()["state"] == "idle"
    loop.submit(20)
    assert loop.state()["state"] == "queued"


@pytest.mark.parametrize(
    ("action", "body", "counted"),
    [
        ("ANNOTATION_CREATED", {"task": {"id": 1}, "annotation": {"id": 5, "was_cancelled": True}}, 1),
        ("ANNOTATION_UPDATED", {"task": {"id": 1}, "annotation": {"id": 5, "ground_truth": True}}, 1),
        ("ANNOTATIONS_CREATED", {"task": [{"id": 1}, {"id": 2}], "annotation": [{"id": 5}, {"id": 6}]}, 2),
        ("ANNOTATIONS_DELETED", {"annotations": [{"id": 5}, {"id": 6}]}, 2),
        ("TASKS_CREATED", {"tasks": [{"id": 1, "total_annotations": 1}, {"id": 2, "total_annotations": 0}]}, 1),
        ("TASKS_DELETED", {"tasks": [{"id": 1}]}, 1),
        ("PROJECT_UPDATED", {}, 0),
    ],
    ids=["skipped", "ground truth", "bulk", "deleted", "imported with annotations", "tasks deleted", "project"],
)
def test_what_counts(loop: Loop, action: str, body: dict[str, Any], counted: int) -> None:
    loop.event(action, **body)
    assert loop.state()["changed"] == str(counted)


def test_the_recorded_payloads_count(loop: Loop, shared: Callable[[str], Path]) -> None:
    """What a real Label Studio sent."""
    folder = shared("facts/payloads")
    for name in ("ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED", "ANNOTATION_CREATED_skipped", "TASKS_CREATED"):
        body = json.loads((folder / f"webhook_{name}.json").read_text())["body"]
        uid = project_uid(body["project"])
        before = loop.triggers.trainings.changed(uid)
        assert loop.client.post("/webhook", json=body).status_code == 201
        loop.state()
        assert loop.triggers.trainings.changed(uid) > before, name


@pytest.mark.parametrize(
    ("policy", "by_button", "by_corrections"),
    [("every 3", True, True), ("cron 0 3 * * *", True, False), ("by hand", True, False), ("never", False, False)],
)
def test_each_policy(loop: Loop, policy: str, by_button: bool, by_corrections: bool) -> None:
    loop.set_policy(policy)
    loop.submit(1, 2, 3, 4)
    loop.state()
    assert bool(loop.jobs()) == by_corrections
    loop.event("START_TRAINING")
    loop.state()
    assert bool(loop.jobs()) == (by_button or by_corrections)
    loop.triggers.trainings.ask(PROJECT)
    assert loop.state()["state"] == "queued"


@pytest.mark.slow
def test_a_burst_is_one_job_and_one_more(loop: Loop) -> None:
    for _ in range(20):
        loop.event("START_TRAINING")
    loop.state()
    assert len(loop.jobs()) == 1

    def burst() -> None:
        loop.submit(*range(50))
        loop.event("START_TRAINING")

    loop.run(during=burst)
    assert loop.state()["state"] == "queued"
    assert len(loop.jobs()) == 1
    loop.run()
    assert loop.state()["state"] == "idle"
    assert loop.state()["changed"] == "0"


def test_corrections_during_a_run_count_for_the_next(loop: Loop) -> None:
    loop.submit(1, 2, 3)
    loop.run(during=lambda: loop.submit(4, 5))
    assert (loop.state()["state"], loop.state()["changed"]) == ("idle", "2")
    loop.submit(6)
    assert loop.state()["state"] == "queued"


def test_a_failure_loses_no_correction_and_does_not_repeat_itself(loop: Loop) -> None:
    loop.submit(1, 2, 3)
    loop.run(outcome="failed")
    known = loop.state()
    assert (known["state"], known["changed"], known["outcome"]) == ("idle", "3", "failed")
    loop.submit(4)  # one more may be what was missing
    assert loop.state()["state"] == "queued"


def test_a_schedule(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.set_policy("cron 0 3 * * *")
    loop.triggers.look_at_schedules()
    monkeypatch.setattr("rq.cron.now", lambda: datetime.now(UTC) + timedelta(days=1))
    loop.triggers.look_at_schedules()
    assert loop.jobs() == []  # nothing was corrected
    loop.submit(1)
    loop.state()
    monkeypatch.setattr("rq.cron.now", lambda: datetime.now(UTC) + timedelta(days=3))
    loop.triggers.look_at_schedules()
    loop.triggers.look_at_schedules()
    assert loop.state()["reason"] == "schedule 0 3 * * *"


@pytest.mark.parametrize(("missed", "jobs"), [({1, 2, 3}, 1), ({1}, 0), (set(), 0)])
def test_what_was_missed(loop: Loop, missed: set[int], jobs: int) -> None:
    loop.missed = missed
    loop.triggers.catch_up()
    assert len(loop.jobs()) == jobs
    assert loop.state()["changed"] == str(len(missed))


def test_a_project_that_cannot_be_asked_stops_nothing(loop: Loop) -> None:
    def gone(project: str) -> set[int]:
        raise ServiceError("gone")

    assert Triggers(loop.settings, loop.store, loop.folder, gone).catch_up() == [PROJECT]
    loop.submit(1, 2, 3)
    assert loop.state()["state"] == "queued"


@pytest.mark.parametrize(("status", "again"), [(404, []), (401, [PROJECT]), (None, [PROJECT])])
def test_a_deleted_project_is_not_asked_again_and_why_is_said_once(
    loop: Loop, status: int | None, again: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(project: str) -> set[int]:
        raise LabelStudioError(f"Label Studio answered {status}", status)

    triggers = Triggers(loop.settings, loop.store, loop.folder, refuses)
    assert triggers.catch_up() == again
    assert triggers.catch_up(again) == again
    assert triggers.catch_up(again) == again
    assert [one.levelname for one in caplog.records if "is not known" in one.message].count("WARNING") == 1


def test_a_project_that_could_not_be_asked_is_asked_again(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.loop.trainings._ASK_AGAIN", 0.0)
    monkeypatch.setattr("backend.loop.trainings._WAIT", 0.05)
    asked: list[str] = []

    def starting(project: str) -> set[int]:
        asked.append(project)
        if len(asked) == 1:
            raise ServiceError("Label Studio is starting")
        return {1, 2, 3}

    triggers = Triggers(loop.settings, loop.store, loop.folder, starting)
    triggers.start()
    try:
        wait_until(lambda: loop.jobs(), what="the job for what was missed")
    finally:
        triggers.stop()
    assert len(asked) == 2


def test_an_event_that_cannot_be_handled_holds_up_no_other(loop: Loop, store: Store) -> None:
    store.record_event({"action": "ANNOTATION_CREATED", "project": PROJECT, "tasks": "no JSON", "annotations": "[]"})
    loop.submit(1, 2, 3)
    assert loop.state()["state"] == "queued"


@pytest.mark.parametrize("redis_lost", [False, True])
@pytest.mark.parametrize("was_running", [False, True])
def test_jobs_that_were_left(loop: Loop, store: Store, redis_lost: bool, was_running: bool) -> None:
    loop.submit(1, 2, 3)
    loop.state()
    left = loop.jobs()
    if was_running:
        loop.triggers.begin(PROJECT)
        queue(store.redis, "train").empty()
    if redis_lost:
        store.redis.flushdb()
    Triggers(loop.settings, store, loop.folder).resume()
    assert loop.triggers.trainings.of(PROJECT)["state"] == "queued"
    assert [job.args[1] for job in queue(store.redis, "train").jobs] == left
    assert loop.jobs() == left


def test_a_job_whose_folder_is_gone_blocks_nothing(loop: Loop) -> None:
    loop.submit(1, 2, 3)
    loop.state()
    (loop.folder / "jobs" / loop.jobs()[0] / "job.json").unlink()
    loop.triggers.resume()
    loop.triggers.trainings.ask(PROJECT)
    assert loop.state()["state"] == "queued"
    assert len(loop.jobs()) == 1


def test_the_thread_reads_events(loop: Loop) -> None:
    loop.triggers.start()
    loop.submit(1, 2, 3)
    deadline = time.monotonic() + 20
    while not loop.jobs() and time.monotonic() < deadline:
        time.sleep(0.05)
    loop.triggers.stop()
    assert len(loop.jobs()) == 1


def test_the_command(loop: Loop, redis_db: str) -> None:
    answer = CliRunner().invoke(train, ["--project", "3", "--again", "--redis-url", redis_db])
    assert "asked for a fine-tune of project 3" in answer.output
    assert isinstance(answer.exception, ConfigError)  # no training process runs
    assert loop.state()["state"] == "queued"
    assert json.loads((loop.folder / "jobs" / loop.jobs()[0] / "job.json").read_text())["again"] is True
    assert Trainings(loop.store).overview()[PROJECT]["reason"] == "asked for"


# --- a model that is not fine-tuned -----------------------------------------------------------------------------------


def serve_foreign(loop: Loop, tmp_path: Path) -> str:
    """Lets a CLIPSeg serve the project, as `lasagna models serve` does; returns its version."""
    registry = Registry(loop.folder)
    folder = write_model("clipseg", tmp_path / "clipseg")
    version = registry.add(folder, project=PROJECT, parent="", snapshot="", metrics={}).id
    registry.promote(PROJECT, version, "")
    return version


@pytest.mark.parametrize("own", [False, True], ids=["of the project", "of the worker"])
def test_nothing_starts_a_fine_tune_of_another_makers_model(
    loop: Loop, tmp_path: Path, own: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own:
        version = "clipseg-1"
        loop.store.publish_model({"version": version, "name": "clipseg", "cannot": Abilities().missing})
    else:
        version = serve_foreign(loop, tmp_path)
    ways: dict[str, Callable[[], object]] = {
        "corrections": lambda: loop.submit(1, 2, 3),
        "another correction": lambda: loop.submit(4),
        "the button": lambda: loop.event("START_TRAINING"),
        "asked for": lambda: loop.triggers.trainings.ask(PROJECT),
        "missed": loop.triggers.catch_up,
    }
    loop.missed = {5}
    for way, begin in ways.items():
        begin()
        known = loop.state()
        assert (loop.jobs(), known["state"], known["outcome"]) == ([], "idle", "refused"), way
        assert version in known["summary"], way
    assert known["changed"] == "5", "corrections are kept"
    own_log = "backend.loop.trainings"  # the answer to START_TRAINING is logged with its reason, too
    said = [one for one in caplog.records if one.name == own_log and "no fine-tune" in one.message]
    assert len(said) == 1
    assert "lasagna models serve 3 nano" in said[0].message
    answer = loop.client.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 3}})
    assert (answer.status_code, version in answer.json["refused"]) == (201, True)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("LASAGNA_REGISTRY", str(loop.folder))
    redis_url = loop.settings.redis_url
    shown = CliRunner().invoke(main, ["jobs", "--redis-url", redis_url]).output
    assert f"no fine-tune: {version} serves the project" in shown
    refused = CliRunner().invoke(main, ["train", "--project", "3", "--redis-url", redis_url])
    assert (refused.exit_code, version in refused.output) == (2, True)


def test_corrections_that_waited_are_trained_on_once_lasagna_serves(loop: Loop, tmp_path: Path) -> None:
    serve_foreign(loop, tmp_path)
    loop.store.publish_model({"version": "nano-1", "name": "nano", "cannot": ["answer questions in words"]})
    loop.submit(1, 2, 3)
    assert loop.state()["outcome"] == "refused"
    Registry(loop.folder).rollback(PROJECT, "by hand")
    loop.submit(4)
    assert (loop.state()["state"], loop.state()["reason"]) == ("queued", "4 corrections")


def test_what_a_worker_of_another_maker_cannot_is_not_said_of_a_project_that_lasagna_serves(
    loop: Loop, random_checkpoint: Path
) -> None:
    loop.store.publish_model({"version": "clipseg-1", "name": "clipseg", "cannot": Abilities().missing})
    registry = Registry(loop.folder)
    version = registry.add(random_checkpoint, project=PROJECT, parent="", snapshot="", metrics={}).id
    registry.promote(PROJECT, version, "")
    assert cannot(PROJECT, registry, loop.store) == ()
    assert why_not_trained(PROJECT, registry, loop.store) == ""


def test_the_command_without_a_project_takes_a_recipe() -> None:
    assert "no recipe given" in CliRunner().invoke(train, []).output
    assert "leave RECIPE out" in CliRunner().invoke(train, ["--project", "3", "a.yaml"]).output


# --- one bad entry ----------------------------------------------------------------------------------------------------


POISON = [
    {"action": "ANNOTATION_CREATED", "project": "9" * 301, "tasks": "[1]", "annotations": "[1]"},
    {"action": "ANNOTATION_CREATED", "project": "../../etc", "tasks": "[1]", "annotations": "[1]"},
    {"action": "ANNOTATION_CREATED", "project": "²", "tasks": "[1]", "annotations": "[1]"},
    {"action": "ANNOTATION_CREATED", "project": "3", "tasks": "{", "annotations": "[]"},
    {"action": "ANNOTATION_CREATED", "project": "3", "tasks": "7", "annotations": "[]"},
    {"action": "START_TRAINING", "project": "9" * 301, "tasks": "[]", "annotations": "[]"},
]


@pytest.mark.parametrize("event", POISON, ids=["301 digits", "a path", "no digit", "half", "no list", "start"])
def test_one_bad_event_does_not_stop_the_others(loop: Loop, event: dict[str, str]) -> None:
    loop.store.record_event(event)
    loop.submit(1, 2, 3)
    for _ in range(4):
        with suppress(Exception):
            loop.triggers.read_events(0.01)
    assert loop.state()["state"] == "queued"


def test_an_event_that_fails_again_and_again_is_named(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = loop.triggers.handle

    def failing(event: Any) -> None:
        if event["tasks"] == "[66]":
            raise OSError(36, "File name too long")
        handle(event)

    monkeypatch.setattr(loop.triggers, "handle", failing)
    loop.store.record_event({"action": "ANNOTATION_CREATED", "project": "3", "tasks": "[66]", "annotations": "[]"})
    for _ in range(2):
        with pytest.raises(OSError, match="too long"):
            loop.triggers.read_events(0.01)
    loop.triggers.read_events(0.01)
    [entry] = loop.store.aside()
    assert "project 3" in entry["what"]
    assert "File name too long" in entry["reason"]
    loop.submit(1, 2, 3)
    assert loop.state()["state"] == "queued"


def test_one_strange_label_studio_does_not_stop_the_others(tmp_path: Path, settings: Settings, store: Store) -> None:
    store.keep_project("3.1", Project("http://127.0.0.1:1", TOKEN, train="every 2"))
    store.keep_project("4.1", Project("http://127.0.0.1:1", TOKEN, train="every 2"))

    def changed(project: str) -> set[int]:
        if project == "3.1":
            raise AttributeError("'list' object has no attribute 'get'")
        return {1, 2}

    triggers = Triggers(settings, store, tmp_path / "registry", changed)
    assert triggers.catch_up() == ["3.1"]
    assert Trainings(store).of("4.1")["state"] == "queued"


def test_a_damaged_job_on_disk_is_set_aside(loop: Loop) -> None:
    for name, text in (("20260101-000000-3-aaaa", "{"), ("20260101-000001-3-bbbb", '{"project": "3"}')):
        folder = loop.folder / "jobs" / name
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(text)
    good = new_job(loop.folder, PROJECT, "asked for")
    loop.triggers.resume()
    assert loop.state()["job"] == good
    assert len(loop.store.aside()) == 2


@pytest.mark.parametrize(
    "project",
    ["3.9999999999", "abc", "../../etc/passwd", "-1", "[1]", "3.x", "9" * 301, "0", "3.1.2", "²"],
    ids=lambda text: text[:12],
)
def test_setup_refuses_what_is_no_project(loop: Loop, project: str) -> None:
    body = {"project": project, "schema": CONFIG, "hostname": "", "access_token": ""}
    assert loop.client.post("/setup", json=body).status_code == 400
    assert loop.store.projects() == [PROJECT]


@pytest.mark.parametrize(
    "words", ["cron " + "9" * 5000 + " * * * *", "every " + "9" * 5000, "every ٣", "cron " + "1," * 999]
)
def test_a_policy_that_cannot_be_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match="when a project is trained"):
        Policy.parse(words)


def test_parameters_that_are_nested_too_deeply_are_refused(loop: Loop) -> None:
    body = {"project": PROJECT, "schema": CONFIG, "hostname": "", "access_token": "", "extra_params": "[" * 100_000}
    answer = loop.client.post("/setup", json=body)
    assert answer.status_code == 400
    assert "nested too deeply" in answer.json["error"]
