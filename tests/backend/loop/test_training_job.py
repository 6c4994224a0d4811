"""A whole fine-tune of a tiny model, also killed in every stage."""

import html
import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.loop.access import StudioAccess
from backend.loop.job import GIVEN_UP_AFTER, STAGES, StoppedError, TrainingJob
from backend.loop.trainings import new_job
from backend.registry.registry import Registry
from backend.studio.client import LabelStudio
from lasagna.checkpoint.folder import checkpoint_version, load_calibration
from lasagna.checkpoint.vocabulary import Taught, Vocabulary, load_vocabulary, write_vocabulary
from lasagna.errors import ConfigError, DataError, TrainingError
from lasagna.settings import Settings
from tests.backend.backend_helpers import PROJECT, TOKEN, StubLabelStudio, note_labels
from tests.backend.loop import killed_job
from tests.backend.loop.loop_helpers import TINY, correct
from training.evaluation import gate
from training.instant.left_out import LeaveOneOut


def environ_of(folder: Path, checkpoint: Path) -> dict[str, str]:
    return {
        "LASAGNA_MODEL": str(checkpoint),
        "LASAGNA_REGISTRY": str(folder / "registry"),
        "LASAGNA_DEVICE": "cpu",
        "LASAGNA_TRAIN_CHANGES": TINY,
        "LASAGNA_REPLAY_DATA": str(folder / "none"),
    }


@pytest.fixture
def environ(tmp_path: Path, checkpoint: Path) -> dict[str, str]:
    return environ_of(tmp_path, checkpoint)


class Project:
    """Jobs of a project in a registry."""

    def __init__(self, stub: StubLabelStudio, environ: dict[str, str]) -> None:
        self.stub, self.settings = stub, Settings.load(environ)
        self.root = Path(environ["LASAGNA_REGISTRY"])
        self.registry = Registry(self.root)
        self.said: list[tuple[str, int, int]] = []
        self.learns_at_once = False

    def new(self, **values: Any) -> str:
        note_labels(self.root)
        return new_job(self.root, PROJECT, "test", **values)

    def job(self, id: str, **more: Any) -> TrainingJob:
        def say(stage: str, step: int, steps: int, seconds: float | None) -> None:
            self.said.append((stage, step, steps))

        access = StudioAccess(LabelStudio(self.stub.url, TOKEN, timeout=5.0), learns_at_once=self.learns_at_once)
        return TrainingJob(self.root, id, self.settings, lambda: access, say, **more)


@pytest.fixture
def project(stub: StubLabelStudio, environ: dict[str, str]) -> Project:
    return Project(stub, environ)


@pytest.mark.slow
def test_what_the_champion_learnt_by_heart_is_not_what_it_knows(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second fine-tune's learning rate follows from the photos that came after the first."""
    before = correct(project.stub, 12)
    job = project.job(project.new())
    first = job.run()
    learnt = job.result("snapshot")["train"]
    if first["outcome"] == "candidate":
        project.registry.promote(PROJECT, first["version"], "by hand")
    after = correct(project.stub, 12, first=13)
    asked: list[int] = []

    def score_images(model: Any, records: list[Any], on_image: Any) -> None:
        asked.extend(int(record.image_id) for record in records)
        raise StoppedError

    job = project.job(project.new())
    monkeypatch.setattr("backend.loop.job.score_images", score_images)
    with pytest.raises(StoppedError):
        job.run()
    assert set(asked) <= set(after)
    assert not set(asked) & set(before)
    assert len(asked) == job.result("snapshot")["train"] - learnt


@pytest.mark.slow
def test_corrections_make_labels_known(stub: StubLabelStudio, tmp_path: Path, checkpoint: Path) -> None:
    """What is fine-tuned knows what it started from and the labels that its corrections have."""
    taught = shutil.copytree(checkpoint, tmp_path / "taught")
    write_vocabulary(taught, Vocabulary({"zebra": Taught(9), "cat": Taught(1)}))
    project = Project(stub, environ_of(tmp_path, taught))
    correct(stub, 12)
    job = project.job(project.new(), should_stop=lambda: ("score", 0, 0) in project.said)
    with pytest.raises(StoppedError):
        job.run()
    trained = int(job.result("snapshot")["train"])
    [made] = (job.folder / "checkpoint").iterdir()
    for folder in (job.folder / "run" / "checkpoint", made):
        found = load_vocabulary(folder)
        assert found is not None
        assert found.names["zebra"] == Taught(9)
        corrected = {name: known.photos for name, known in found.names.items() if name not in ("zebra", "cat")}
        assert corrected, "labels of the corrections"
        assert set(corrected) <= {"Cat", "Dog", "Sky"}
        assert all(0 < photos <= trained for photos in corrected.values())


@pytest.fixture(scope="module")
def first_round(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[tuple[Project, str]]:
    """Twelve corrections and the version that was made of them, which the gate refused. To be copied."""
    stub = StubLabelStudio()
    stub.start()
    project = Project(stub, environ_of(tmp_path_factory.mktemp("first"), checkpoint))
    correct(stub, 12)
    first = project.job(project.new()).run()
    assert first["outcome"] == "candidate"  # four steps of a random model
    yield project, str(first["version"])
    stub.stop()


@pytest.fixture
def refused(project: Project, first_round: tuple[Project, str]) -> str:
    """A version that the gate refused, after which twelve more tasks were corrected."""
    first, version = first_round
    shutil.copytree(first.root, project.root)
    project.stub.go_on_as(first.stub)
    correct(project.stub, 12, first=13)
    return version


def snapshot_of(project: Project, version: str) -> Path:
    return project.root / "snapshots" / PROJECT / project.registry.version(version).snapshot


def tasks_of(snapshot: Path, side: str) -> set[int]:
    return {int(task["id"]) for task in json.loads((snapshot / f"{side}.json").read_text())}


def stopped_before_training(project: Project, id: str) -> TrainingJob:
    project.said.clear()
    job = project.job(id, should_stop=lambda: ("train", 0, 0) in project.said)
    with pytest.raises(StoppedError):
        job.run()
    return job


@pytest.mark.slow
def test_a_refused_version_that_later_corrections_speak_for_serves_and_is_trained_on(
    project: Project, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[set[int]] = []
    really = gate.judge

    def judge(champion: list[Any], candidate: list[Any], *more: Any) -> Any:
        judged.extend({int(score.image_id) for score in scores} for scores in (champion, candidate))
        verdict = really(champion, candidate, *more)
        assert verdict.latency is not None
        return replace(verdict, reasons=(gate.Reason("better", True, "Better on these."),))

    id = project.new()
    with monkeypatch.context() as patch:
        patch.setattr("backend.loop.recheck.judge", judge)
        job = stopped_before_training(project, id)
    trained, snapshot = tasks_of(snapshot_of(project, refused), "train"), Path(job.result("snapshot")["folder"])
    held, new = tasks_of(snapshot, "holdout"), tasks_of(snapshot, "train") - trained
    assert judged == [held | new] * 2
    champion = project.registry.champion(PROJECT)
    assert champion is not None
    assert champion.id == refused
    assert "judged again with" in project.registry.aliases(PROJECT).history[-1].reason

    result = project.job(id).run()  # its model starts from the one that serves now
    version = project.registry.version(result["version"])
    assert version.parent == refused
    assert "Promoted before" in result["summary"]
    report = json.loads(next(path for path in version.reports if path.suffix == ".json").read_text())
    assert report["champion"] == refused
    assert report["about"]["the candidate before"].startswith(f"{refused}, judged again with {len(new)} photos")


@pytest.mark.slow
def test_a_refused_version_is_refused_again(project: Project, refused: str) -> None:
    job = stopped_before_training(project, project.new())
    assert job.result("recheck")["version"] == refused
    assert job.result("recheck")["passed"] is False
    assert project.registry.champion(PROJECT) is None


def test_a_version_that_somebody_rolled_back_is_not_judged_again(project: Project, refused: str) -> None:
    project.registry.promote(PROJECT, refused, "by hand")
    project.registry.rollback(PROJECT, "worse")
    assert stopped_before_training(project, project.new()).result("recheck").keys() == {"seconds"}


@pytest.mark.slow
def test_without_its_snapshot_nothing_is_known_to_be_new_to_it(project: Project, refused: str) -> None:
    shutil.rmtree(snapshot_of(project, refused))
    assert stopped_before_training(project, project.new()).result("recheck").keys() == {"seconds"}
    shutil.rmtree(project.registry.version(refused).folder)
    assert stopped_before_training(project, project.new()).result("recheck").keys() == {"seconds"}


@pytest.mark.slow
def test_from_corrections_to_a_version_killed_in_every_stage(
    project: Project, environ: dict[str, str], tmp_path: Path, checkpoint: Path
) -> None:
    correct(project.stub, 18)
    project.stub.images["/data/upload/3/1.png"] = b"broken"
    straight = project.job(project.new()).run()
    version = project.registry.version(straight["version"])
    assert straight["outcome"] in ("candidate", "promoted")
    assert list(dict.fromkeys(stage for stage, _, _ in project.said)) == list(STAGES)
    assert ("train", 4, 4) in project.said
    assert version.parent == checkpoint_version(checkpoint)
    assert version.labels == ("Cat", "Dog", "Sky")
    assert version.metrics["took"].keys() == set(STAGES[:-1])
    assert {path.name for path in version.reports} == {"report.html", "report.json"}
    assert version.id != version.parent
    assert load_calibration(version.checkpoint).class_offsets.keys() <= {"cat", "dog", "sky", "Cat", "Dog", "Sky"}
    report = json.loads(next(path for path in version.reports if path.suffix == ".json").read_text())
    assert "task 1: " in report["about"]["could not be used"]
    assert (report["champion"], report["candidate"]) == (version.parent, version.id)
    assert "nothing is replayed" in report["about"]["note"]
    assert "the model hardly knew these classes" in report["about"]["note"]  # its weights are random
    end = project.job(project.new()).run()  # nothing changed since
    assert (end["outcome"], end["version"]) == ("unchanged", version.id)

    other = environ | {"LASAGNA_REGISTRY": str(tmp_path / "other")}
    id = Project(project.stub, other).new()
    for stage in STAGES:
        ended = killed_job.exit_code(tmp_path / "other", id, other, project.stub.url, TOKEN, stage)
        assert ended == -signal.SIGKILL, stage
    last = Project(project.stub, other)
    # Content-addressed: the same weights and calibration.
    assert last.job(id).run()["version"] == version.id
    assert "train" not in [stage for stage, _, _ in last.said]  # it had ended before the last attempt
    logged = (tmp_path / "other" / "jobs" / id / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [1, 2, 3, 4]


@pytest.mark.slow
def test_what_serves_is_judged_a_model_with_its_head(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each beside a head of all corrections; those that the candidate was trained on say nothing of how good it is."""
    correct(project.stub, 16)
    project.learns_at_once = True
    made: list[LeaveOneOut] = []

    class Noted(LeaveOneOut):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr("backend.loop.job.LeaveOneOut", Noted)
    found = project.job(project.new()).run()
    champion, candidate = made
    assert champion.head is not None
    assert candidate.head is not None
    assert champion.head.decision.compared == 16
    assert candidate.head.decision.corrections == 16
    held_out = json.loads((snapshot_of(project, found["version"]) / "split.json").read_text())
    assert candidate.head.decision.compared == sum(place["side"] == "holdout" for place in held_out.values()) < 16
    [report] = [path for path in found["reports"] if path.endswith(".html")]
    text = Path(report).read_text()
    assert "instant head of the champion" in text
    assert html.escape(champion.reason) in text


def test_stopped_between_steps_goes_on(project: Project) -> None:
    correct(project.stub, 8)
    id = project.new()
    with pytest.raises(StoppedError):
        project.job(id, should_stop=lambda: ("train", 2, 4) in project.said).run()
    project.said.clear()
    with pytest.raises(StoppedError):
        project.job(id, should_stop=lambda: any(stage == "calibrate" for stage, _, _ in project.said)).run()
    assert [said for said in project.said if said[0] == "train"][:2] == [("train", 0, 0), ("train", 2, 4)]


def test_too_few_corrections(project: Project) -> None:
    correct(project.stub, 3)
    with pytest.raises(DataError, match="corrections of 3 different photos"):
        project.job(project.new()).run()


def test_a_wrong_recipe(project: Project, environ: dict[str, str]) -> None:
    correct(project.stub, 8)
    wrong = Project(project.stub, environ | {"LASAGNA_TRAIN_CHANGES": "optimiser.step=3"})
    with pytest.raises(ConfigError, match=r"optimiser\.step: unknown key"):
        wrong.job(wrong.new()).run()


def test_label_studio_gone_for_a_while(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    correct(project.stub, 8)
    project.stub.status["/api/projects"] = 503
    monkeypatch.setattr("backend.loop.job.time.sleep", lambda seconds: project.stub.status.clear())
    job = project.job(project.new(), should_stop=lambda: ("train", 0, 0) in project.said)
    with pytest.raises(StoppedError):
        job.run()
    assert job.result("snapshot")["train"] == 4


def test_a_process_that_always_dies_is_given_up(project: Project) -> None:
    id = project.new()
    folder = project.root / "jobs" / id
    (folder / "starts.json").write_text(json.dumps([["snapshot", 0]] * GIVEN_UP_AFTER))
    with pytest.raises(TrainingError, match="ended 10 times in stage 'snapshot'"):
        project.job(id).run()


def test_another_champion_meanwhile_keeps_the_candidate_waiting(project: Project, checkpoint: Path) -> None:
    """The gate's verdict was against a model that no longer serves."""
    correct(project.stub, 8)
    id = project.new()
    with pytest.raises(StoppedError):
        project.job(id, should_stop=lambda: ("train", 0, 0) in project.said).run()
    values = {"project": PROJECT, "parent": "", "snapshot": "", "metrics": {}}
    new = project.registry.add(checkpoint, **values, labels=("other",))
    project.registry.promote(PROJECT, new.id, "by hand")
    job = project.job(id)
    (job.folder / "checkpoint").mkdir()
    name = job.result("snapshot")["parent"].rpartition("-")[0]
    (job.folder / "checkpoint" / name).symlink_to(checkpoint)
    passed = {"figures": {}, "classes": [], "passed": True, "summary": "Passed", "seconds": 0.0}
    for stage in STAGES[STAGES.index("train") : -1]:
        (job.folder / f"{stage}.json").write_text(json.dumps(passed))
    result = job.run()
    assert result["outcome"] == "candidate"
    assert "another model serves now" in result["summary"]
    assert project.registry.champion(PROJECT) == new
