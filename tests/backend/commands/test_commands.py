"""The commands: help, `lasagna jobs`, `lasagna prelabel`."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from backend.commands.jobs import jobs
from backend.commands.prelabel import prelabel
from backend.commands.serve import serve, worker
from backend.queue.counters import Meter
from backend.queue.store import Project, Store, Work
from backend.studio.client import LabelStudio
from backend.web.predictions import Predictor
from backend.web.prelabel import ProjectRun
from backend.web.prelabel_jobs import PrelabelJobs, work_on
from backend.worker.rq_worker import LasagnaWorker
from lasagna.errors import ServiceError
from lasagna.settings import Settings
from tests.backend.backend_helpers import (
    CONFIG,
    PREDICTION,
    PROJECT,
    TOKEN,
    Backend,
    StubLabelStudio,
    asked,
    wait_until,
)


@pytest.fixture(autouse=True)
def environment(redis_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASAGNA_REDIS_URL", redis_db)
    monkeypatch.setenv("COLUMNS", "200")


def run(command: Any, *arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


@pytest.mark.parametrize("command", [serve, worker, prelabel, jobs], ids=lambda command: command.name)
def test_help_has_examples(command: Any) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert f"  lasagna {command.name}" in result.output


class TestCheck:
    """`lasagna worker --check`."""

    def test_a_living_worker(self, store: Store) -> None:
        assert run(worker, "--check").exit_code == 1
        LasagnaWorker(store.redis, store, 1, ["train"]).register_birth()
        assert run(worker, "--check", "--queues", "train").exit_code == 0
        assert run(worker, "--check").exit_code == 1

    def test_without_redis_says_so_and_starts_none(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("LASAGNA_REDIS_URL")
        monkeypatch.setenv("LASAGNA_STATE_DIR", str(tmp_path / "state"))
        result = run(worker, "--check")
        assert (result.exit_code, result.output) == (1, "Redis does not answer\n")
        assert not (tmp_path / "state").exists()


class TestJobs:
    @pytest.fixture(autouse=True)
    def works(self, store: Store) -> None:
        """One work in each state."""
        store.keep_project(PROJECT, Project("http://127.0.0.1:1", TOKEN))
        works = [Work(PROJECT, number, f"/{number}.png", "config", "tiny-1") for number in range(1, 6)]
        keys = [entry.key for entry in store.register(works, lease=60)]
        store.start(keys[1:], "job")
        for key in keys[2:4]:
            store.finish(key, PREDICTION)
        store.collect([entry for entry in store.register(works, lease=60) if entry.key == keys[3]])
        store.fail(keys[4], "the file [a.png] is broken")

    def test_table(self) -> None:
        output = run(jobs).output
        assert "queued 1  running 1  ready 1  done 1  failed 1" in output
        assert "the file [a.png] is broken" in output
        assert "Workers: none" in output

    def test_twenty_failures_in_80_columns(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        works = [Work(PROJECT, number, f"/{number}.png", "config", "tiny-1") for number in range(100, 120)]
        keys = [entry.key for entry in store.register(works, lease=0)]
        store.start(keys, "job")
        reason = "Label Studio at http://label.example.org answered 404: No file was found in its storage " * 3
        for key in keys[1:]:
            store.fail(key, reason)
        store.fail(keys[0], "the file [b.png] is broken")
        output = run(jobs, "--state", "failed", "--limit", "30").output
        assert max(map(len, output.splitlines())) <= 80
        told = output[output.index("failed  project 3") :]
        assert len(told.splitlines()) <= 10
        words = " ".join(told.split())
        assert "project 3, tasks 119, 118, 117, 116, 115, 114, 113, 112 and 11 more, " in words
        assert words.count(reason.strip()) == 1
        assert "project 3, task 100, " in words
        assert "the file [b.png] is broken" in words

    def test_json(self) -> None:
        report = json.loads(run(jobs, "--json").output)
        assert report["counts"] == {"queued": 1, "running": 1, "ready": 1, "done": 1, "failed": 1}
        by_state = {task["state"]: task for task in report["tasks"]}
        assert {state: task["task"] for state, task in by_state.items()} == {
            "queued": 1,
            "running": 2,
            "ready": 3,
            "done": 4,
            "failed": 5,
        }
        assert by_state["failed"]["reason"] == "the file [a.png] is broken"
        assert by_state["done"]["delivery"] == "answered"
        assert report["queues"] == {"interactive": 0, "instant": 0, "predict": 0, "train": 0}

    def test_whole_projects(self, store: Store) -> None:
        records = PrelabelJobs(store)
        id = records.add("3")
        records.add("4")
        records.claim(id, "me")
        times = {"started": store.now() - 10, "seen": store.now()}
        records.note(id, state="running", total=20, predicted=5, had_one=5, **times)
        output = run(jobs).output
        assert "Project 3: pre-labelling 10 of 20, 0.5 per second, 20 s left" in output
        assert "Project 4: waits to be pre-labelled" in output

    def test_one_state(self) -> None:
        report = json.loads(run(jobs, "--json", "--state", "failed").output)
        assert [task["state"] for task in report["tasks"]] == ["failed"]

    def test_retry(self, store: Store) -> None:
        assert run(jobs, "retry", "--project", "4").output.startswith("0 tasks queued again")
        assert run(jobs, "retry").output.startswith("1 tasks queued again")
        assert store.counts()["failed"] == 0
        assert json.loads(run(jobs, "--json").output)["queues"]["predict"] == 1

    def test_retry_while_redis_has_no_memory_left(self, store: Store) -> None:
        store.redis.config_set("maxmemory", 1)
        try:
            result = run(jobs, "retry")
        finally:
            store.redis.config_set("maxmemory", 0)
        assert isinstance(result.exception, ServiceError)
        assert "maxmemory" in str(result.exception)
        assert store.counts()["failed"] == 1


def test_jobs_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    from lasagna.commands.cli import main

    result = run(main, "jobs", "--redis-url", "redis://127.0.0.1:1/0")
    assert result.exit_code == 2
    assert "LASAGNA_REDIS_URL" in result.output


@pytest.mark.usefixtures("working")
class TestPrelabel:
    def command(self, stub: StubLabelStudio, *more: str) -> Result:
        return run(prelabel, *self.arguments(stub, *more))

    def arguments(self, stub: StubLabelStudio, *more: str) -> list[str]:
        return ["3", "--url", stub.url, "--token", TOKEN, *more]

    @pytest.mark.slow
    def test_every_task_gets_its_prediction(self, stub: StubLabelStudio, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("backend.web.prelabel._ASK_AT_ONCE", 2)
        monkeypatch.setattr("backend.web.prelabel._MAX_OUTSTANDING", 3)
        stub.add_tasks(2)
        stub.add_tasks(2, first=4)
        result = self.command(stub)
        assert result.exit_code == 0, result.output
        assert "4 predicted, 0 had a prediction already, 0 failed" in result.output
        assert sorted(p["task"] for p in stub.predictions) == [1, 2, 4, 5]
        again = self.command(stub)
        assert "0 predicted, 4 had a prediction already, 0 failed" in again.output
        assert len(stub.predictions) == 4

    @pytest.mark.slow
    def test_refresh_replaces(self, stub: StubLabelStudio) -> None:
        stub.add_tasks(2)
        old = {"model_version": asked("tiny-1"), "result": [{"id": "old"}], "score": 0.0}
        stub.predictions += [{"id": 1, "task": 1, **old}, {"id": 2, "task": 1, **old, "model_version": "tiny-0"}]
        result = self.command(stub, "--refresh")
        assert "2 predicted" in result.output
        assert sorted((p["task"], p["model_version"], p["result"][0]["id"]) for p in stub.predictions) == [
            (1, "tiny-0", "old"),
            (1, asked("tiny-1"), "new"),
            (2, asked("tiny-1"), "new"),
        ]

    @pytest.mark.slow
    def test_tasks_that_nobody_has_annotated_are_renewed(self, stub: StubLabelStudio) -> None:
        tasks = [*stub.add_tasks(2), *stub.add_tasks(2, first=4), *stub.add_tasks(1, first=7)]
        for task, annotations in zip(tasks, (0, 1, 0, 1, 1), strict=True):
            task["total_annotations"] = annotations
        old = {"result": [{"id": "old"}], "score": 0.0}
        stub.predictions += [
            {"id": number, "task": task, "model_version": version, **old}
            for number, (task, version) in enumerate([(1, "tiny-0"), (2, "tiny-0"), (5, asked("tiny-1"))], start=1)
        ]
        assert "3 predicted, 1 had a prediction already, 1 annotated keep an older one" in self.command(stub).output
        renewed = {p["task"] for p in stub.predictions if p["result"][0]["id"] == "new"}
        assert renewed == {1, 4, 7}  # 7 is annotated and had none

    @pytest.mark.slow
    def test_an_annotated_task_keeps_its_prediction_also_with_refresh(self, stub: StubLabelStudio) -> None:
        tasks = stub.add_tasks(2)
        tasks[0]["total_annotations"] = 1
        old = {"result": [{"id": "old"}], "score": 0.0, "model_version": asked("tiny-1")}
        stub.predictions += [{"id": number, "task": number, **old} for number in (1, 2)]
        assert "1 predicted, 1 had a prediction already, 0 failed" in self.command(stub, "--refresh").output
        assert [(p["task"], p["result"][0]["id"]) for p in stub.predictions] == [(1, "old"), (2, "new")]

    def test_dry_run(self, stub: StubLabelStudio, store: Store) -> None:
        tasks = [*stub.add_tasks(2), *stub.add_tasks(2, first=4), *stub.add_tasks(1, first=7)]
        for task, annotations in zip(tasks, (0, 1, 0, 1, 1), strict=True):
            task["total_annotations"] = annotations
        versions = [(1, "tiny-0"), (2, "tiny-0"), (5, asked("tiny-1"))]
        stub.predictions += [
            {"id": number, "task": task, "model_version": version, "result": []}
            for number, (task, version) in enumerate(versions, start=1)
        ]
        said = self.command(stub, "--dry-run").output
        assert "3 of 5 tasks would be predicted: 2 without a prediction, 1 outdated" in said
        assert "Left alone: 1 up to date, 1 annotated with an older one." in said
        assert "1 outdated: another version serves the project" in said
        assert f"is not known before {asked('tiny-1')} has predicted something here" in said
        meter = Meter(store.redis)
        meter.pace("tiny-1", 10, 25.0)
        meter.flush()
        plan = json.loads(CliRunner().invoke(prelabel, self.arguments(stub, "--dry-run", "--json")).stdout)
        assert plan == {
            "version": asked("tiny-1"), "total": 5,
            "missing": 2, "outdated": 1, "replaced": 0, "had_one": 1, "annotated": 1,
            "why": [{"kind": "version", "words": "another version serves the project", "tasks": 1}],
            "workers": 0, "seconds_per_task": 2.5, "seconds": 7.5, "to_predict": 3,
        }  # fmt: skip
        assert len(stub.predictions) == 3
        assert sum(store.counts().values()) == 0

    @pytest.mark.slow
    def test_a_label_that_looks_like_markup_of_a_terminal(self, stub: StubLabelStudio) -> None:
        [task] = stub.add_tasks(1)
        arguments = self.arguments(stub, "--dry-run", "--json")
        version = json.loads(CliRunner().invoke(prelabel, arguments).stdout)["version"]
        stub.predictions.append({"id": 1, "task": task["id"], "model_version": version, "result": []})
        stub.label_config = CONFIG.replace('value="Dog"', 'value="[/b] [red]dog"')
        found = run(prelabel, *self.arguments(stub, "--dry-run"))
        assert found.exit_code == 0, found.exception
        assert "the label '[/b] [red]dog' was added" in " ".join(found.output.split())

    def test_json(self, stub: StubLabelStudio) -> None:
        stub.add_tasks(3)
        found = json.loads(CliRunner().invoke(prelabel, self.arguments(stub, "--json")).stdout)
        failed = {"3": "the image is broken"}
        counts = {"total": 3, "done": 2, "had_one": 0, "annotated": 0, "deleted": 0, "cancelled": 0, "why": {}}
        assert found == {"version": asked("tiny-1"), **counts, "failed": failed}

    @pytest.mark.slow
    def test_leaves_a_record_of_the_run(self, stub: StubLabelStudio, store: Store) -> None:
        stub.add_tasks(3)
        self.command(stub)
        [job] = PrelabelJobs(store).recent()
        assert {name: job[name] for name in ("by", "state", "project", "total", "predicted", "failed", "through")} == {
            "by": "command", "state": "done", "project": 3, "total": 3, "predicted": 2, "failed": 1, "through": 3,
        }  # fmt: skip
        assert job["failures"] == {"3": "the image is broken"}
        assert job["rate"] > 0

    @pytest.mark.slow
    def test_failures_are_listed_and_set_the_exit_code(self, stub: StubLabelStudio) -> None:
        stub.add_tasks(3)
        stub.tasks[0]["data"] = {"text": "x"}
        result = self.command(stub)
        assert result.exit_code == 1
        assert "1 predicted, 0 had a prediction already, 2 failed" in result.output
        assert "task 1: the task has no field 'image'" in result.output
        assert "task 3: the image is broken" in result.output

    def test_says_that_no_worker_runs(self, stub: StubLabelStudio) -> None:
        assert "no worker is running" in self.command(stub).output

    def test_an_unusable_configuration(self, stub: StubLabelStudio) -> None:
        from lasagna.commands.cli import main

        stub.label_config = "<View/>"
        result = run(main, "prelabel", "3", "--url", stub.url, "--token", TOKEN)
        assert result.exit_code == 2
        assert "shows no image" in result.output

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((), "where is Label Studio"),
            (("--url", "http://127.0.0.1:1", "--token", "t"), "cannot be reached"),
            (("--url", "http://127.0.0.1:1"), "there is no token"),
        ],
    )
    def test_label_studio_cannot_be_asked(self, arguments: tuple[str, ...], words: str) -> None:
        from lasagna.commands.cli import main

        result = run(main, "prelabel", "3", *arguments)
        assert result.exit_code == 2
        assert words in result.output


@pytest.mark.slow
def test_prelabel_looks_whether_an_answer_was_stored(
    store: Store, stub: StubLabelStudio, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label Studio asked for the same two tasks, and was killed when it had stored the first."""
    monkeypatch.setattr("backend.web.prelabel._STORED_WITHIN", 0.0)
    monkeypatch.setattr("backend.web.prelabel._CONFIRM_EVERY", 0.05)
    prediction = {"model_version": asked("tiny-1"), "score": 0.5, "result": []}
    store.publish_model({"version": "tiny-1"})
    stub.add_tasks(2)
    project = ProjectRun(Predictor(settings, store), LabelStudio(stub.url, TOKEN), 3)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(project.run, lambda _: None)
        keys = wait_until(lambda: found if len(found := store.keys("queued")) == 2 else None)
        entries = store.register([Work.from_fields(fields) for fields in store.fields(keys)], lease=30)
        stub.predictions.append({"id": 1, "task": 1, **prediction})
        for key in keys:
            store.finish(key, prediction)
        assert [status for status, _ in store.collect(entries)] == ["prediction"] * 2
        [again] = wait_until(lambda: store.keys("queued"))
        store.finish(again, prediction)
        post = wait_until(lambda: next(iter(store.take_posts()), None))
        assert (post.work.task, post.work.replace) == (2, True)
        stub.predictions.append({"id": 2, "task": 2, **prediction})
        store.posted(post.key, 2)
        outcome = ended.result(30)
    assert (outcome.done, outcome.failed) == (2, {})


def test_prelabel_leaves_the_token_of_setup(store: Store, stub: StubLabelStudio, settings: Settings) -> None:
    store.keep_project(PROJECT, Project("http://ls", "from-setup", params={"threshold": 0.3}))
    run = ProjectRun(Predictor(settings, store), LabelStudio(stub.url, TOKEN), 3)
    assert run.uid.startswith("3.")
    assert store.project(run.uid).given_token == TOKEN
    assert stub.label_config == CONFIG


class TestCancel:
    """Nothing works on the queue here: what is asked for waits."""

    @pytest.fixture(autouse=True)
    def model(self, store: Store) -> None:
        store.publish_model({"version": "tiny-1"})

    def project(self, settings: Settings, store: Store, stub: StubLabelStudio) -> ProjectRun:
        return ProjectRun(Predictor(settings, store), LabelStudio(stub.url, TOKEN), 3)

    @pytest.mark.slow
    def test_a_run_ends_and_its_waiting_tasks_are_taken_out(
        self, settings: Settings, store: Store, stub: StubLabelStudio
    ) -> None:
        stub.add_tasks(5)
        records = PrelabelJobs(store)
        id = records.add("3", by="command")
        records.claim(id, "me")
        with ThreadPoolExecutor(1) as pool:
            run_ = self.project(settings, store, stub)
            ended = pool.submit(work_on, records, id, "me", run_, lambda _: None)
            keys = wait_until(lambda: found if len(found := store.keys("queued")) == 5 else None)
            store.start(keys[:1], "job")  # a worker has begun this one
            said = run(jobs, "cancel", "--project", "3")
            assert "1 jobs cancelled, 4 waiting tasks taken out" in said.output
            store.finish(keys[0], PREDICTION)
            store.posted(keys[0], 7)
            outcome = ended.result(30)
        assert (outcome.done, outcome.cancelled, outcome.failed) == (1, 4, {})
        job = records.of(id) or {}
        assert (job["state"], job["cancelled"], job["predicted"]) == ("cancelled", 4, 1)
        assert store.counts() | {"done": 5, "queued": 0, "failed": 0} == store.counts()

    def test_what_was_cancelled_is_asked_for_again_as_new(self, store: Store) -> None:
        work = Work(PROJECT, 1, "/1.png", store.keep_config(CONFIG), "tiny-1")
        store.register([work], lease=0)
        assert store.cancel([work.key]) == 1
        assert store.start([work.key], "job") == []
        assert store.register([work], lease=0)[0].status == "new"

    def test_what_somebody_waits_for_stays(self, store: Store) -> None:
        works = [Work(PROJECT, task, f"/{task}.png", store.keep_config(CONFIG), "tiny-1") for task in (1, 2)]
        store.register(works[:1], lease=60)
        store.register(works[1:], lease=0)
        assert "0 jobs cancelled, 1 waiting tasks" in run(jobs, "cancel", "--all").output
        assert store.states([work.key for work in works]) == ["queued", "done"]

    def test_only_the_project(self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LASAGNA_REGISTRY", str(tmp_path))
        config = store.keep_config(CONFIG)
        works = [Work(f"{number}.1", 1, "/1.png", config, "tiny-1") for number in (3, 33)]
        store.register(works, lease=0)
        records = PrelabelJobs(store)
        ids = [records.add(number) for number in ("3", "33")]
        run(jobs, "cancel", "--project", "3")
        assert store.states([work.key for work in works]) == ["done", "queued"]
        assert [(records.of(id) or {})["state"] for id in ids] == ["cancelled", "queued"]
        assert records.unfinished() == ids[1:]

    def test_it_has_to_be_said_what(self) -> None:
        assert run(jobs, "cancel").exit_code == 2
        assert run(jobs, "cancel", "--project", "3", "--all").exit_code == 2

    @pytest.mark.slow
    def test_ctrl_c_says_what_goes_on_and_how_to_stop_it(
        self, store: Store, stub: StubLabelStudio, backend: Backend
    ) -> None:
        stub.add_tasks(3)
        words = ("prelabel", "3", "--url", stub.url, "--token", TOKEN)
        process = backend.run(*words, wait_for="no worker is running")
        wait_until(lambda: len(store.keys("queued")) == 3)
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(30) == 130
        assert "go on in the worker" in process.output()
        assert "lasagna jobs cancel --project 3" in process.output()
        [job] = PrelabelJobs(store).recent()
        assert job["state"] == "interrupted"
        assert store.counts()["queued"] == 3
        run(jobs, "cancel", "--project", "3")
        assert store.counts()["queued"] == 0
        assert (PrelabelJobs(store).of(job["id"]) or {})["state"] == "cancelled"
