"""What may go goes, and nothing that anything needs."""

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from backend.loop.tidy import Keep, find_garbage, tidy
from backend.loop.trainings import Trainings, unfinished_jobs
from backend.queue.store import Project, Store
from backend.registry.registry import Registry
from lasagna.commands.cli import main

KEEP = Keep(snapshots=2, jobs=1, days=10, log_bytes=1000)


def snapshot(root: Path, name: str, days: float, project: str = "3") -> Path:
    folder = root / "snapshots" / project / name
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(b"x" * 1000)
    then = time.time() - days * 86400
    os.utime(folder, (then, then))
    return folder


def job(root: Path, name: str, days: float, *, ended: bool = True, of: str = "") -> Path:
    folder = root / "jobs" / name
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"project": "3.1", "reason": "x"}))
    if of:
        (folder / "snapshot.json").write_text(json.dumps({"id": of}))
    if ended:
        (folder / "end.json").write_text("{}")
        then = time.time() - days * 86400
        os.utime(folder / "end.json", (then, then))
    return folder


@pytest.fixture
def root(tmp_path: Path, checkpoint: Path) -> Path:
    """A registry in which every kind of thing is needed by one other, and one of each by none."""
    root = tmp_path / "registry"
    snapshot(root, "of-a-version", 50)
    snapshot(root, "of-a-job", 40)
    snapshot(root, "compared-with", 30)
    snapshot(root, "garbage", 20)
    for number in range(2):
        snapshot(root, f"new-{number}", number)
    snapshot(root, "only-one", 99, project="4")
    (root / "snapshots" / "3" / "seen.json").write_text(json.dumps({"id": "compared-with", "tasks": {}}))
    (root / "snapshots" / "3" / "sides.json").write_text("{}")
    Registry(root).add(checkpoint, project="3", snapshot="of-a-version", parent="", metrics={})
    job(root, "20260101-000000-3-aaaa", 300)
    job(root, "20260102-000000-3-bbbb", 299, ended=False, of="of-a-job")
    job(root, "20261101-000000-3-cccc", 5)
    job(root, "20261102-000000-3-dddd", 4)
    return root


def test_what_nothing_needs_goes(root: Path, store: Store, tmp_path: Path) -> None:
    logs = tmp_path / "state"
    logs.mkdir()
    (logs / "training.log").write_bytes(b"old\n" * 1000 + b"new\n" * 25)
    trainings = Trainings(store)
    for number in ("3", "7", "8", "8.1"):
        trainings.note(number, state="idle", ended=str(time.time() - 40 * 86400))
    trainings.add_changes("7", ["1"])
    store.keep_project("8.1", Project())
    before = sorted(path for path in root.rglob("*"))
    found = find_garbage(root, logs, store, KEEP)
    assert sorted(path for path in root.rglob("*")) == before
    assert [garbage.what.split(" of ")[0] for garbage in found] == [
        "snapshot garbage",
        "job 20260101-000000-3-aaaa",
        str(logs / "training.log"),
        "training state",
    ]
    assert found[0].bytes == 1000
    assert tidy(root, logs, store, KEEP) == found
    assert find_garbage(root, logs, store, KEEP) == []
    left = {path.name for path in (root / "snapshots" / "3").iterdir()}
    assert left == {"of-a-version", "of-a-job", "compared-with", "new-0", "new-1", "seen.json", "sides.json"}
    assert (root / "snapshots" / "4" / "only-one").is_dir()
    assert (logs / "training.log").read_bytes() == b"new\n" * 25
    assert trainings.projects() == ["3", "8", "8.1"]
    assert not list(store.redis.scan_iter("lasagna:training:7*"))


def test_what_is_left_of_a_project_that_is_gone_goes(root: Path, store: Store, tmp_path: Path) -> None:
    """Deleted in Label Studio: its record in Redis lapses after ninety days, its folders are found by their age."""
    old = {"5.1", "6.1", "8.1", "3", "3.1"}  # gone; in Redis; changed lately; with a version; with an unfinished job
    for name in old:
        correction = root / "heads" / name / "nano-1" / "corrections" / "a.safetensors"
        correction.parent.mkdir(parents=True)
        correction.write_bytes(b"x" * 100)
    snapshot(root, "last", 0, project="5.1")
    (root / "labels").mkdir()
    for name in ("5.1", "6.1"):
        (root / "labels" / f"{name}.json").write_text("{}")
    store.keep_project("6.1", Project())
    then = time.time() - 200 * 86400
    for path in (
        *root.glob("heads/**/*"),
        *root.glob("snapshots/5.1/**/*"),
        *root.glob("*/5.1*"),
        *root.glob("labels/*"),
    ):
        os.utime(path, (then, then))
    os.utime(root / "heads" / "8.1" / "nano-1" / "corrections" / "a.safetensors")
    found = [one for one in find_garbage(root, tmp_path, store, Keep(snapshots=99)) if "job" not in one.what]
    whats = ["corrections and heads of project 5", "snapshots of project 5", "histories of labels of project 5"]
    assert [one.what for one in found] == whats
    assert [one.bytes for one in found] == [100, 1000, 2]
    assert "200 days" in found[0].why
    tidy(root, tmp_path, store, Keep(snapshots=99))
    assert {path.name for path in (root / "heads").iterdir()} == old - {"5.1"}
    assert not (root / "snapshots" / "5.1").exists()
    assert [path.name for path in (root / "labels").iterdir()] == ["6.1.json"]
    assert (root / "snapshots" / "4" / "only-one").is_dir()  # younger


def test_what_was_removed_by_half_goes_and_is_no_job(root: Path, store: Store, tmp_path: Path) -> None:
    """The process was killed between the end of a job's file and the end of its folder."""
    half = root / "jobs" / ".gone-20260101-000000-3-aaaa"
    half.mkdir()
    (half / "job.json").write_text(json.dumps({"project": "3"}))
    assert half.name not in unfinished_jobs(root)
    tidy(root, tmp_path, store, KEEP)
    assert not half.exists()


def test_a_link_of_another_snapshot_counts_nothing(root: Path, store: Store, tmp_path: Path) -> None:
    photo = root / "snapshots" / "3" / "garbage" / "images" / "a.png"
    os.link(photo, root / "snapshots" / "3" / "new-0" / "images" / "b.png")
    [garbage] = [one for one in find_garbage(root, tmp_path, store, KEEP) if "snapshot" in one.what]
    assert garbage.bytes == 0
    tidy(root, tmp_path, store, KEEP)
    assert (root / "snapshots" / "3" / "new-0" / "images" / "b.png").read_bytes() == b"x" * 1000


def test_what_cannot_be_read_is_taken_for_needed(root: Path, redis_db: str, tmp_path: Path) -> None:
    (root / "jobs" / "20260102-000000-3-bbbb" / "snapshot.json").write_text("{")
    environ = {"LASAGNA_REGISTRY": str(root), "LASAGNA_REDIS_URL": redis_db, "LASAGNA_STATE_DIR": str(tmp_path / "s")}
    result = CliRunner().invoke(main, ["gc", "--snapshots", "1"], env=environ)
    assert result.exit_code != 0
    assert "cannot be read" in result.output
    assert (root / "snapshots" / "3" / "garbage").is_dir()


def test_the_command_says_and_removes(root: Path, redis_db: str, tmp_path: Path) -> None:
    environ = {"LASAGNA_REGISTRY": str(root), "LASAGNA_REDIS_URL": redis_db, "LASAGNA_STATE_DIR": str(tmp_path / "s")}
    arguments = ["gc", "--snapshots", "2", "--jobs", "1", "--days", "10"]
    dry = CliRunner().invoke(main, [*arguments, "--dry-run"], env=environ)
    assert "2 things, 0.0 MB would go" in dry.output
    assert (root / "snapshots" / "3" / "garbage").is_dir()
    done = CliRunner().invoke(main, arguments, env=environ)
    assert "snapshot garbage of project 3" in done.output
    assert "2 things, 0.0 MB are gone" in done.output
    assert "nothing to remove" in CliRunner().invoke(main, arguments, env=environ).output
    assert not (root / "snapshots" / "3" / "garbage").exists()
    assert not (root / "jobs" / "20260101-000000-3-aaaa").exists()
