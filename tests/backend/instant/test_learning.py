"""Corrections in the product: real Redis, a stub of Label Studio, a tiny random model."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from backend.instant.changes import CRASHES, EVERYTHING, Changes
from backend.instant.heads import ProjectHeads
from backend.queue import jobs
from backend.queue.store import Project, Store
from backend.queue.works import work_of
from backend.studio.version_names import base_version
from backend.web.predictions import Predictor
from backend.worker.runtime import Runtime
from lasagna import Lasagna
from lasagna.errors import RegistryError
from lasagna.instant.store import HeadStore
from lasagna.labels.configuration import parse_label_config
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, PROJECT, TOKEN, StubLabelStudio, asked, note_labels
from tests.backend.loop.loop_helpers import correct, rectangle, square


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Lasagna:
    return Lasagna.from_pretrained(checkpoint, device="cpu")


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.replaced(registry=str(tmp_path / "registry"))


@pytest.fixture
def runtime(model: Lasagna, settings: Settings, store: Store, stub: StubLabelStudio) -> Runtime:
    store.keep_project(PROJECT, Project(stub.url, TOKEN))
    note_labels(settings.registry)
    return Runtime(model, settings, store)


@pytest.fixture
def changes(store: Store) -> Changes:
    return Changes(store)


def learn_all(runtime: Runtime) -> None:
    """Runs the project's jobs until nothing waits."""
    for _ in range(50):
        runtime.learn(PROJECT)
        if not runtime.learning.changes.waiting(PROJECT):
            return
    raise AssertionError("corrections still wait")


def heads_of(runtime: Runtime) -> HeadStore:
    return HeadStore(runtime.learning.heads.folder(PROJECT, runtime.model.version))


def learnt(runtime: Runtime) -> set[str]:
    return {known.id for known in heads_of(runtime).corrections}


class TestLearning:
    @pytest.mark.slow
    def test_corrections_make_a_head_that_predictions_carry(
        self, runtime: Runtime, settings: Settings, store: Store, stub: StubLabelStudio, changes: Changes
    ) -> None:
        predictor = Predictor(settings, store)
        store.publish_model({"version": runtime.model.version})
        assert predictor.model_version(PROJECT) == runtime.model.version
        changes.note(PROJECT, correct(stub, 6))
        learn_all(runtime)
        assert learnt(runtime) == {str(number) for number in range(1, 7)}
        version = predictor.model_version(PROJECT)
        assert base_version(version) == runtime.model.version
        assert version != runtime.model.version
        task = stub.add_tasks(1, first=50)[0]
        work = work_of(parse_label_config(CONFIG), task, PROJECT, store.keep_config(CONFIG), version)
        store.register([work], lease=0)
        assert runtime.predict([work.key], "job")["predicted"] == 1
        post = next(iter(store.take_posts()), None)
        assert post is not None
        assert post.prediction["model_version"] == asked(version)

    def test_one_job_waits_however_many_events_come(self, store: Store, changes: Changes) -> None:
        for task in range(5):
            changes.note(PROJECT, [task])
        assert jobs.queue(store.redis, "instant").count == 1
        changes.begin(PROJECT)
        changes.note(PROJECT, [9])
        assert jobs.queue(store.redis, "instant").count == 2

    @pytest.mark.slow
    def test_changed_deleted_and_skipped_annotations(
        self, runtime: Runtime, stub: StubLabelStudio, changes: Changes
    ) -> None:
        changes.note(PROJECT, correct(stub, 4))
        learn_all(runtime)
        before = {known.id: known.digest for known in heads_of(runtime).corrections}
        first = stub.tasks[0]["annotations"][0]
        stub.annotate(1, [rectangle(square(3)[1])], id=first["id"])
        stub.tasks[1]["annotations"] = []
        stub.tasks[2]["annotations"][0]["was_cancelled"] = True
        changes.note(PROJECT, [1, EVERYTHING, 3])
        learn_all(runtime)
        after = {known.id: known.digest for known in heads_of(runtime).corrections}
        assert set(after) == {"1", "4"}
        assert after["1"] != before["1"]
        assert after["4"] == before["4"]

    def test_what_changes_while_it_is_learnt_is_learnt_again(self, store: Store, changes: Changes) -> None:
        changes.note(PROJECT, [1, 2])
        read = changes.waiting(PROJECT)
        changes.note(PROJECT, [2])
        assert changes.done(PROJECT, read) == 1
        assert set(changes.waiting(PROJECT)) == {"2"}

    @pytest.mark.slow
    def test_an_unusable_annotation_is_set_aside_and_the_others_count(
        self, runtime: Runtime, stub: StubLabelStudio, changes: Changes
    ) -> None:
        numbers = correct(stub, 4)
        stub.images[stub.tasks[1]["data"]["image"]] = b"this is no image"
        changes.note(PROJECT, numbers)
        learn_all(runtime)
        assert learnt(runtime) == {"1", "3", "4"}
        aside = changes.aside(PROJECT)
        assert set(aside) == {"2"}
        assert "not an image" in aside["2"]
        stub.images[stub.tasks[1]["data"]["image"]] = square(2)[0]
        stub.annotate(2, [rectangle(square(2)[1])])
        changes.note(PROJECT, [2])
        learn_all(runtime)
        assert learnt(runtime) == {"1", "2", "3", "4"}
        assert not changes.aside(PROJECT)

    @pytest.mark.slow
    def test_what_was_annotated_before_anything_was_noted(
        self, runtime: Runtime, settings: Settings, stub: StubLabelStudio, changes: Changes
    ) -> None:
        """A class is absent from when on somebody used its label; the others stay undecided. Later jobs know it too."""
        (Path(settings.registry) / "labels" / f"{PROJECT}.json").unlink()
        for number in correct(stub, 3):
            changes.note(PROJECT, [number])
            runtime.learn(PROJECT)
        assert [heads_of(runtime).read(id).classes for id in ("1", "2", "3")] == [("Cat",)] * 3
        changes.note(PROJECT, correct(stub, 1, first=4))
        stub.tasks[-1]["annotations"] = []
        stub.annotate(4, [rectangle(square(4)[1], "Dog")])
        learn_all(runtime)
        changes.note(PROJECT, correct(stub, 1, first=6))
        learn_all(runtime)
        assert heads_of(runtime).read("6").classes == ("Cat", "Dog")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("was", "now", "again", "classes"),
        [
            ('value="Cat"', 'value="Cat" background="red"', False, {"Cat", "Dog", "Sky"}),
            ('<Label value="Sky"/>', '<Label value="Sky"/><Label value="Sea"/>', False, {"Cat", "Dog", "Sky"}),
            ('value="Cat"', 'value="Cat" hint="kitten"', True, {"Cat", "Dog", "Sky"}),
            ('<Label value="Sky"/>', "", True, {"Cat", "Dog"}),
            ('value="Cat"', 'value="Tom"', True, {"Tom", "Dog", "Sky"}),
        ],
        ids=["coloured", "added", "read as something else", "removed", "renamed"],
    )
    def test_labels_change(
        self,
        runtime: Runtime,
        stub: StubLabelStudio,
        changes: Changes,
        was: str,
        now: str,
        again: bool,
        classes: set[str],
    ) -> None:
        """An annotation is read again where its labels mean something else by now."""
        changes.note(PROJECT, correct(stub, 2))
        learn_all(runtime)
        assert set(heads_of(runtime).read("1").classes) == {"Cat", "Dog", "Sky"}
        stub.label_config = CONFIG.replace(was, now)
        runtime.learning.histories.note(PROJECT, parse_label_config(stub.label_config).images)
        if "Tom" in now:
            runtime.learning.histories.rename(PROJECT, "Cat", "Tom")
        changes.note(PROJECT, [EVERYTHING])
        assert runtime.learning.learn(PROJECT).learnt == (2 if again else 0)
        assert set(heads_of(runtime).read("1").classes) == classes
        changes.note(PROJECT, [EVERYTHING])
        assert runtime.learning.learn(PROJECT).learnt == 0

    def test_a_task_that_ends_the_worker_is_set_aside(
        self, runtime: Runtime, stub: StubLabelStudio, changes: Changes
    ) -> None:
        changes.note(PROJECT, correct(stub, 2))
        for _ in range(CRASHES):
            changes.attempt(PROJECT, "1")
        learn_all(runtime)
        assert learnt(runtime) == {"2"}
        assert "died" in changes.aside(PROJECT)["1"]

    def test_label_studio_gone_loses_nothing(self, runtime: Runtime, stub: StubLabelStudio, changes: Changes) -> None:
        changes.note(PROJECT, correct(stub, 2))
        stub.status["/api"] = 503
        runtime.learn(PROJECT)
        assert set(changes.waiting(PROJECT)) == {"1", "2"}
        stub.status.clear()
        learn_all(runtime)
        assert learnt(runtime) == {"1", "2"}

    @pytest.mark.slow
    def test_a_new_redis_and_lost_files_are_made_again_from_label_studio(
        self, runtime: Runtime, store: Store, stub: StubLabelStudio, changes: Changes, settings: Settings
    ) -> None:
        changes.note(PROJECT, correct(stub, 3))
        learn_all(runtime)
        digest = heads_of(runtime).current().digest  # type: ignore[union-attr]
        store.redis.flushdb()
        correct(stub, 1, first=20)
        Predictor(settings, store).setup(PROJECT, CONFIG, stub.url, TOKEN)
        learn_all(runtime)
        assert learnt(runtime) == {"1", "2", "3", "20"}
        folder = runtime.learning.heads.folder(PROJECT, runtime.model.version)
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        stub.tasks[:] = [task for task in stub.tasks if task["id"] != 20]
        runtime.learning._stores.clear()
        changes.note(PROJECT, [EVERYTHING])
        learn_all(runtime)
        assert heads_of(runtime).current().digest == digest  # type: ignore[union-attr]

    @pytest.mark.slow
    def test_two_workers_make_the_head_of_one(
        self,
        runtime: Runtime,
        model: Lasagna,
        settings: Settings,
        store: Store,
        stub: StubLabelStudio,
        changes: Changes,
    ) -> None:
        numbers = correct(stub, 6)
        other = Runtime(model, settings, store)
        for number in numbers:
            changes.note(PROJECT, [number])
            (runtime if number % 2 else other).learn(PROJECT)
        both = heads_of(runtime).current()
        note_labels(settings.registry + "-alone")
        alone = Runtime(model, settings.replaced(registry=settings.registry + "-alone"), store)
        changes.note(PROJECT, [EVERYTHING])
        learn_all(alone)
        single = heads_of(alone).current()
        assert both is not None
        assert single is not None
        assert both.digest == single.digest
        assert torch.allclose(both.weight, single.weight, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_another_version_learns_anew_and_the_former_keeps_its_own(
        self, runtime: Runtime, stub: StubLabelStudio, changes: Changes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        changes.note(PROJECT, correct(stub, 3))
        learn_all(runtime)
        changes.say(PROJECT, version="other-00000000")
        runtime.learning.look_after()
        assert set(changes.waiting(PROJECT)) == {EVERYTHING}
        learn_all(runtime)
        assert learnt(runtime) == {"1", "2", "3"}


class TestWeb:
    def test_other_labels_have_every_annotation_read_again(
        self, settings: Settings, store: Store, stub: StubLabelStudio, changes: Changes
    ) -> None:
        predictor = Predictor(settings, store)
        store.keep_project(PROJECT, Project(stub.url, TOKEN))
        for config, noted in ((CONFIG, False), (CONFIG, False), (CONFIG.replace("Sky", "Sea"), True)):
            predictor.project_updated({"id": 3, "label_config": config})
            assert (EVERYTHING in changes.waiting(PROJECT)) == noted

    def test_events(self, settings: Settings, store: Store, stub: StubLabelStudio, changes: Changes) -> None:
        predictor = Predictor(settings, store)
        store.keep_project(PROJECT, Project(stub.url, TOKEN))
        event = {"action": "ANNOTATION_CREATED", "project": "3", "tasks": "[7]", "annotations": "[1]"}
        predictor.corrected(event)
        assert set(changes.waiting(PROJECT)) == {"7"}
        predictor.corrected({**event, "action": "ANNOTATIONS_DELETED", "tasks": "[]"})
        assert set(changes.waiting(PROJECT)) == {"7", EVERYTHING}
        predictor.corrected({**event, "action": "PROJECT_UPDATED", "tasks": "[8]"})
        assert set(changes.waiting(PROJECT)) == {"7", EVERYTHING}

    @pytest.mark.slow
    @pytest.mark.parametrize("where", ["setting", "project"])
    def test_switched_off(
        self,
        runtime: Runtime,
        settings: Settings,
        store: Store,
        stub: StubLabelStudio,
        changes: Changes,
        where: str,
    ) -> None:
        changes.note(PROJECT, correct(stub, 3))
        learn_all(runtime)
        off = settings.replaced(instant=False) if where == "setting" else settings
        store.keep_project(PROJECT, Project(stub.url, TOKEN, instant=False if where == "project" else None))
        predictor = Predictor(off, store)
        store.publish_model({"version": runtime.model.version})
        assert predictor.model_version(PROJECT) == runtime.model.version
        predictor.corrected({"action": "ANNOTATION_CREATED", "project": "3", "tasks": "[7]", "annotations": "[1]"})
        assert not changes.waiting(PROJECT)

    def test_a_damaged_pointer_is_named_and_predictions_go_on(
        self, runtime: Runtime, settings: Settings, store: Store, stub: StubLabelStudio, changes: Changes
    ) -> None:
        changes.note(PROJECT, correct(stub, 2))
        learn_all(runtime)
        heads = ProjectHeads(runtime.learning.heads._root.parent)
        (heads.folder(PROJECT, runtime.model.version) / "current.json").write_text("{")
        with pytest.raises(RegistryError, match="made again from Label Studio"):
            heads.current(PROJECT, runtime.model.version)
        assert runtime._serving(PROJECT, runtime.model.version).version == runtime.model.version
        store.publish_model({"version": runtime.model.version})
        assert Predictor(settings, store).model_version(PROJECT) == runtime.model.version

    @pytest.mark.slow
    def test_a_removed_folder_is_made_again_by_a_running_worker(
        self, runtime: Runtime, stub: StubLabelStudio, changes: Changes
    ) -> None:
        changes.note(PROJECT, correct(stub, 2))
        learn_all(runtime)
        shutil.rmtree(runtime.learning.heads.folder(PROJECT, runtime.model.version))
        changes.note(PROJECT, [EVERYTHING])
        learn_all(runtime)
        assert learnt(runtime) == {"1", "2"}

    def test_heads_of_versions_that_are_gone_are_removed(
        self, runtime: Runtime, stub: StubLabelStudio, changes: Changes
    ) -> None:
        old = runtime.learning.heads.folder(PROJECT, "nano-00000000")
        (old / "corrections").mkdir(parents=True)
        changes.note(PROJECT, correct(stub, 1))
        learn_all(runtime)
        assert runtime.learning.heads.versions(PROJECT) == [runtime.model.version]


class TestRenewal:
    @pytest.mark.slow
    def test_the_next_tasks_are_predicted_anew_and_nobodys_work_is_touched(
        self, runtime: Runtime, store: Store, stub: StubLabelStudio, changes: Changes
    ) -> None:
        numbers = correct(stub, 3)
        stub.add_tasks(4, first=30)
        old = runtime.model.version
        for task, version in ((30, old), (31, f"{old}+h77"), (32, "yolo-v8"), (1, old)):
            stub.predictions.append({"id": 500 + task, "task": task, "model_version": version, "result": []})
        changes.note(PROJECT, numbers)
        learn_all(runtime)
        asked = {work["task"] for work in store.fields(store.keys("queued"))}
        assert asked == {"30", "31"}


# --- kills ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork has no other threads
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_twenty_kills_in_forty_corrections(
    runtime: Runtime, model: Lasagna, settings: Settings, store: Store, stub: StubLabelStudio, changes: Changes
) -> None:
    """No correction is lost or counted twice: the head is that of a worker that was never killed."""
    draw = random.Random(5)
    numbers = correct(stub, 40)
    kills = 0
    while numbers or changes.waiting(PROJECT):
        if numbers and len(changes.waiting(PROJECT)) < 4:
            changes.note(PROJECT, [numbers.pop(0) for _ in range(min(4, len(numbers)))])
        pid = os.fork()
        if pid == 0:
            try:
                Runtime(model, settings, store).learn(PROJECT)
            finally:
                os._exit(0)
        if kills < 20:
            time.sleep(draw.uniform(0.02, 0.35))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        kills += os.WIFSIGNALED(status)
        for task in changes.waiting(PROJECT):  # twenty kills are not the fault of a task
            store.redis.hdel(f"lasagna:instant:{PROJECT}:attempts", task)
    assert kills >= 20
    assert not changes.aside(PROJECT)
    killed = heads_of(runtime).current()
    note_labels(settings.registry + "-alone")
    alone = Runtime(model, settings.replaced(registry=settings.registry + "-alone"), store)
    changes.note(PROJECT, [EVERYTHING])
    learn_all(alone)
    never = heads_of(alone).current()
    assert killed is not None
    assert never is not None
    assert learnt(runtime) == {str(number) for number in range(1, 41)}
    assert killed.digest == never.digest
    assert torch.allclose(killed.weight, never.weight, rtol=1e-4, atol=1e-5)
