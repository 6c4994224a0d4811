"""Which project a number stands for, and what becomes of what earlier releases kept by numbers."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backend.app import create_app
from backend.commands.jobs import jobs
from backend.commands.train import train
from backend.instant.heads import ProjectHeads
from backend.loop.tidy import tidy
from backend.loop.trainings import Trainings, Triggers
from backend.queue.store import PREFIX, Project, Store, Work
from backend.registry.known_projects import KnownProjects
from backend.registry.label_histories import LabelHistories
from backend.registry.registry import Registry
from backend.registry.takeover import take_over
from backend.studio.project_id import uid_of_event
from lasagna.errors import ConfigError
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, TOKEN

ONE, TWO = "https://one.example.org", "http://two.example.org:8080/studio"


@pytest.fixture
def known(tmp_path: Path, store: Store) -> KnownProjects:
    return KnownProjects(tmp_path / "registry", store)


class TestNumbers:
    def test_one_label_studio(self, known: KnownProjects, store: Store) -> None:
        assert known.resolve("3") == "3"  # nobody has told its uid
        store.keep_project("3.100", Project(ONE))
        assert known.resolve("3") == known.resolve("3", ONE) == known.resolve("3.100") == "3.100"
        store.keep_project("3.200", Project(ONE))  # its database was made anew
        assert known.resolve("3") == "3.200"
        assert known.names(["3.200"]) == {"3.200": "3"}

    def test_two_of_a_number(self, known: KnownProjects, store: Store) -> None:
        store.keep_project("3.100", Project(ONE))
        store.keep_project("3.200", Project(TWO))
        store.keep_project("4.100", Project(TWO))
        with pytest.raises(ConfigError) as error:
            known.resolve("3")
        for words in ("2 Label Studios have a project 3", f"3.100 of {ONE}", f"3.200 of {TWO}", "--server ADDRESS"):
            assert words in str(error.value)
        for server in (ONE, ONE + "/", "one.example.org"):
            assert known.resolve("3", server) == "3.100"
        for server in (TWO, "two.example.org", "two.example.org:8080", "two.example.org:8080/studio"):
            assert known.resolve("3", server) == "3.200"
        assert known.resolve("4") == "4.100"
        with pytest.raises(ConfigError, match=f"no project 4 of {ONE} is known here; known: 4.100 of"):
            known.resolve("4", ONE)
        assert known.names(["3.100", "4.100"]) == {"3.100": f"3 of {ONE}", "4.100": "4"}

    def test_files_alone_know_the_servers(self, known: KnownProjects, tmp_path: Path) -> None:
        known.note("3.100", ONE)
        known.note("3.200", TWO)
        known.note("3.200", TWO)
        files = KnownProjects(tmp_path / "registry", None)
        assert files.resolve("3", ONE) == "3.100"
        with pytest.raises(ConfigError, match="say which one"):
            files.resolve("3")

    def test_a_label_studio_that_moved_keeps_its_projects(
        self, known: KnownProjects, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And it is said, once: it may be a copy."""
        store.keep_project("3.100", Project(ONE))
        known.note("3.100", ONE)
        assert caplog.text == ""
        store.keep_project("3.100", Project(TWO))
        later = KnownProjects(tmp_path / "registry", store)  # another process
        for server in (TWO, ONE, TWO):
            later.note("3.100", server)
        assert [record.message for record in caplog.records] == [caplog.records[0].message]
        assert f"project 3 is at {TWO} now, and was at {ONE}" in caplog.text
        assert known.resolve("3") == known.resolve("3", TWO) == "3.100"
        assert [each.server for each in known.of("3")] == [TWO]

    def test_where_one_is_configured_there_is_one(self, tmp_path: Path, store: Store) -> None:
        store.keep_project("3.100", Project("http://localhost:8080"))
        store.keep_project("3.200", Project("http://127.0.0.1:8080"))
        assert KnownProjects(tmp_path, store, is_one_server=True).resolve("3") == "3.200"

    def test_a_damaged_list_is_made_again(self, known: KnownProjects, tmp_path: Path, store: Store) -> None:
        known.note("3.100", ONE)
        (tmp_path / "registry" / "servers.json").write_text("{")
        known.note("4.100", TWO)
        assert KnownProjects(tmp_path / "registry", None).resolve("4") == "4.100"

    @pytest.mark.parametrize("name", ["", "x", "../3", "3.1.2", "-1", "9" * 301])
    def test_what_is_no_project(self, known: KnownProjects, name: str) -> None:
        with pytest.raises(ConfigError, match="not what Label Studio calls a project"):
            known.resolve(name)

    @pytest.mark.parametrize(
        ("project", "uid"),
        [
            ({"id": 3, "created_at": "2026-11-24T15:23:33.984000Z"}, "3.1795533813"),
            ({"id": 3}, "3"),
            ({"id": 3, "created_at": "yesterday"}, "3"),
            ({"id": 3, "created_at": "2999-01-01T00:00:00Z"}, "3"),
            ({"id": True, "created_at": "2026-11-24T15:23:33Z"}, ""),
            ([], ""),
        ],
    )
    def test_of_an_event(self, project: Any, uid: str) -> None:
        assert uid_of_event(project) == uid


def old_installation(registry: Path, store: Store, checkpoint: Path, uid: str) -> str:
    """What 1.0 left of project 3: in Redis, and on disk. Returns the champion."""
    store.redis.hset(f"{PREFIX}uids", "3", uid)
    store.redis.set(f"{PREFIX}project:{uid}", json.dumps({"url": ONE, "token": TOKEN}), ex=86400)
    store.redis.sadd(f"{PREFIX}trainings", "3")
    store.redis.hset(f"{PREFIX}training:3", mapping={"state": "idle", "outcome": "promoted", "ended": "1"})
    store.redis.sadd(f"{PREFIX}training:3:changed", "7", "8")
    store.redis.sadd(f"{PREFIX}training:3:taken", "9")
    version = Registry(registry).add(checkpoint, project="3", parent="", snapshot="s-1", metrics={})
    Registry(registry).promote("3", version.id, "better")
    (registry / "labels").mkdir()
    seen = [{"at": "2026-01-01T00:00:00+00:00", "labels": {"image": ["Cat"]}}]
    (registry / "labels" / "3.json").write_text(json.dumps({"seen": seen, "renamed": {"Kitten": "Cat"}}))
    for path in ("heads/3/nano-1/seen.json", "snapshots/3/s-1/train.json", "snapshots/3/sides.json"):
        (registry / path).parent.mkdir(parents=True, exist_ok=True)
        (registry / path).write_text("{}")
    return version.id


class TestTakeover:
    @pytest.mark.parametrize("how", ["redis", "job", "setup"])
    def test_nothing_is_lost(self, store: Store, settings: Settings, tmp_path: Path, make: Any, how: str) -> None:
        """The owner is what Redis says, else the newest fine-tune, else who connects first."""
        registry, uid = tmp_path / "registry", "3.1795397674"
        champion = old_installation(registry, store, make(3.0), uid)
        if how != "redis":
            store.redis.delete(f"{PREFIX}project:{uid}", f"{PREFIX}uids")
        for name, of in (("20260101-000000-3-aaaa", "3.5"), ("20260102-000000-3-bbbb", uid)) if how == "job" else ():
            (registry / "jobs" / name).mkdir(parents=True)
            (registry / "jobs" / name / "job.json").write_text(json.dumps({"project": of, "reason": "x"}))
            (registry / "jobs" / name / "end.json").write_text("{}")
        client = create_app(settings.replaced(registry=str(registry))).test_client()
        if how == "setup":
            assert Registry(registry).champion("3") is not None  # nobody knows yet whose it is
            body = {"project": uid, "schema": CONFIG, "hostname": ONE, "access_token": TOKEN}
            assert client.post("/setup", json=body).status_code == 200
        found = Registry(registry).champion(uid)
        assert found is not None
        assert found.id == champion
        assert Registry(registry).projects() == [uid]
        assert LabelHistories(registry).renamed(uid) == {"Kitten": "Cat"}
        assert ProjectHeads(registry).versions(uid) == ["nano-1"]
        assert (registry / "snapshots" / uid / "s-1" / "train.json").exists()
        assert sorted(path.name for path in (registry / "snapshots").iterdir()) == [uid]
        trainings = Trainings(store)
        assert trainings.projects() == [uid]
        assert (trainings.of(uid)["outcome"], trainings.changed(uid)) == ("promoted", 2)
        assert store.redis.smembers(f"{PREFIX}training:{uid}:taken") == {b"9"}
        assert not list(store.redis.scan_iter(f"{PREFIX}training:3")) + list(
            store.redis.scan_iter(f"{PREFIX}training:3:*")
        )
        assert take_over(registry, store) == []

    def test_a_second_label_studio_gets_nothing_of_it(
        self, store: Store, settings: Settings, tmp_path: Path, make: Any
    ) -> None:
        registry = tmp_path / "registry"
        champion = old_installation(registry, store, make(3.0), "3.100")
        client = create_app(settings.replaced(registry=str(registry))).test_client()
        body = {"project": "3.200", "schema": CONFIG, "hostname": TWO, "access_token": TOKEN}
        answer = client.post("/setup", json=body)
        assert answer.json["model_version"].partition("~")[0] != champion
        assert Registry(registry).champion("3.200") is None
        assert (Registry(registry).champion("3.100") or answer).id == champion

    def test_what_is_there_already_stays(self, store: Store, tmp_path: Path, make: Any) -> None:
        registry, uid = tmp_path / "registry", "3.100"
        old_installation(registry, store, make(3.0), uid)
        (registry / "projects" / f"{uid}.json").write_text(
            '{"champion": "", "candidate": "", "former": [], "history": []}'
        )
        (registry / "heads" / uid / "nano-1").mkdir(parents=True)
        (registry / "heads" / uid / "nano-1" / "seen.json").write_text("newer")
        (registry / "heads" / "3" / "nano-2").mkdir()
        assert take_over(registry, store) == [uid]
        assert Registry(registry).champion(uid) is None
        assert Registry(registry).champion("3") is not None
        assert (registry / "heads" / uid / "nano-1" / "seen.json").read_text() == "newer"
        assert (registry / "heads" / "3" / "nano-1" / "seen.json").read_text() == "{}"
        assert (registry / "heads" / uid / "nano-2").is_dir()
        assert take_over(registry, store) == []  # and it is not said again

    def test_a_fine_tune_that_goes_on_finds_its_snapshot(
        self, store: Store, settings: Settings, tmp_path: Path, make: Any
    ) -> None:
        registry, uid = tmp_path / "registry", "3.100"
        old_installation(registry, store, make(3.0), uid)
        job = registry / "jobs" / "20260101-000000-3-aaaa"
        job.mkdir(parents=True)
        (job / "job.json").write_text(json.dumps({"project": uid, "reason": "3 corrections"}))
        (job / "snapshot.json").write_text(
            json.dumps({"id": "s-1", "folder": str(registry / "snapshots" / "3" / "s-1")})
        )
        take_over(registry, store)
        assert (registry / "snapshots" / "3" / "s-1" / "train.json").exists()
        Triggers(settings, store, registry).resume()
        assert Trainings(store).of(uid)["state"] == "queued"
        tidy(registry, tmp_path, None)
        assert (registry / "snapshots" / "3" / "s-1").exists()
        (job / "end.json").write_text("{}")
        tidy(registry, tmp_path, None)
        assert sorted(os.listdir(registry / "snapshots")) == [uid]
        assert take_over(registry, store) == []

    def test_a_registry_that_cannot_be_written_is_said(
        self, store: Store, tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        registry = tmp_path / "registry"
        champion = old_installation(registry, store, make(3.0), "3.100")
        (registry / ".takeover.lock").mkdir()  # root may write everywhere
        assert take_over(registry, store) == []
        assert "cannot be moved" in caplog.text
        assert Registry(registry).aliases("3").champion == champion


class TestCommands:
    @pytest.fixture(autouse=True)
    def two(self, store: Store, redis_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("REGISTRY", str(tmp_path / "registry")), ("REDIS_URL", redis_db)):
            monkeypatch.setenv(f"LASAGNA_{name}", value)
        for uid, url in (("3.100", ONE), ("3.200", TWO)):
            store.keep_project(uid, Project(url))
            [entry] = store.register([Work(uid, 1, "{}", "c", "tiny-1")], lease=0)
            store.start([entry.key], "job")
            store.fail(entry.key, "the image is broken", "image")

    def run(self, command: Any, *arguments: str) -> str:
        found = CliRunner().invoke(command, list(arguments))
        return found.output if found.exception is None else f"{found.exception} {found.output}"

    def test_both_are_named_and_one_is_asked_for(self, store: Store) -> None:
        for command, arguments in ((train, ["--project", "3"]), (jobs, ["retry", "--project", "3"])):
            said = self.run(command, *arguments)
            assert ONE in said
            assert TWO in said
        assert store.events() == []
        assert store.counts()["failed"] == 2
        self.run(train, "--project", "3", "--server", TWO)
        assert [event["project"] for event in store.events()] == ["3.200"]
        assert "1 tasks queued again" in self.run(jobs, "retry", "--project", "3", "--server", ONE)
        [left] = store.fields(store.keys("failed"))
        assert left["project"] == "3.200"
        assert "1 tasks queued again" in self.run(jobs, "retry", "--project", "3.200")

    def test_the_list_names_both(self) -> None:
        said = self.run(jobs)
        for url in (ONE, TWO):
            assert f"project 3 of {url}, task 1" in " ".join(said.split())
