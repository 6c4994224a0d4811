"""A whole fine-tune of a tiny model, also killed in every stage."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from backend_helpers import PROJECT, TOKEN, StubLabelStudio
from loop_helpers import TINY, correct

from backend.label_studio import LabelStudio
from backend.registry import Registry
from backend.training_job import GIVEN_UP_AFTER, STAGES, Access, StoppedError, TrainingJob
from backend.trainings import new_job
from lasagna.checkpoint import checkpoint_version, load_calibration
from lasagna.errors import ConfigError, DataError, TrainingError
from lasagna.settings import Settings


@pytest.fixture
def environ(tmp_path: Path, checkpoint: Path) -> dict[str, str]:
    return {
        "LASAGNA_MODEL": str(checkpoint),
        "LASAGNA_REGISTRY": str(tmp_path / "registry"),
        "LASAGNA_DEVICE": "cpu",
        "LASAGNA_TRAIN_CHANGES": TINY,
        "LASAGNA_REPLAY_DATA": str(tmp_path / "none"),
    }


class Project:
    """Jobs of a project in a registry."""

    def __init__(self, stub: StubLabelStudio, environ: dict[str, str]) -> None:
        self.stub, self.settings = stub, Settings.load(environ)
        self.root = Path(environ["LASAGNA_REGISTRY"])
        self.registry = Registry(self.root)
        self.said: list[tuple[str, int, int]] = []

    def new(self, **values: Any) -> str:
        return new_job(self.root, PROJECT, "test", **values)

    def job(self, id: str, **more: Any) -> TrainingJob:
        def say(stage: str, step: int, steps: int, seconds: float | None) -> None:
            self.said.append((stage, step, steps))

        access = Access(LabelStudio(self.stub.url, TOKEN, timeout=5.0))
        return TrainingJob(self.root, id, self.settings, lambda: access, say, **more)


@pytest.fixture
def project(stub: StubLabelStudio, environ: dict[str, str]) -> Project:
    return Project(stub, environ)


@pytest.mark.usefixtures("one_thread")
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
    monkeypatch.setattr("training.scores.score_images", score_images)
    with pytest.raises(StoppedError):
        job.run()
    assert set(asked) <= set(after)
    assert not set(asked) & set(before)
    assert len(asked) == job.result("snapshot")["train"] - learnt


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("one_thread")
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
    id = new_job(tmp_path / "other", PROJECT, "test")
    script = [sys.executable, str(Path(__file__).with_name("killed_job.py")), str(tmp_path / "other"), id]
    done = subprocess.run(
        [*script, project.stub.url, TOKEN, *STAGES],
        env={**os.environ, **other, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["died"] == dict.fromkeys(STAGES, 9)
    assert result["trained"] == []  # training had ended before the last attempt
    assert result["version"] == version.id  # content-addressed: the same weights and calibration
    logged = (tmp_path / "other" / "jobs" / id / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [1, 2, 3, 4]


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
    monkeypatch.setattr("backend.training_job.time.sleep", lambda seconds: project.stub.status.clear())
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
    for stage in STAGES[1:-1]:
        (job.folder / f"{stage}.json").write_text(json.dumps(passed))
    result = job.run()
    assert result["outcome"] == "candidate"
    assert "another model serves now" in result["summary"]
    assert project.registry.champion(PROJECT) == new
