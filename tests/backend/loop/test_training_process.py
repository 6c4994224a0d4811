"""The real training process: what it missed, killed in the middle, beside a worker."""

import fcntl
from pathlib import Path

import pytest

from backend.loop.trainings import Trainings, unfinished_jobs
from backend.queue.store import Project, Store
from backend.registry.registry import Registry
from tests.backend.backend_helpers import PROJECT, TOKEN, Backend, StubLabelStudio, wait_until
from tests.backend.loop.loop_helpers import TINY, correct

SECONDS = 600.0
pytestmark = pytest.mark.slow


@pytest.fixture
def loop(backend: Backend, stub: StubLabelStudio, store: Store, tmp_path: Path) -> Backend:
    """A project with ten corrections of which no webhook told."""
    correct(stub, 10)
    store.keep_project(PROJECT, Project(stub.url, TOKEN, "", None, "every 10"))
    backend.environ |= {"LASAGNA_TRAIN_CHANGES": TINY, "LASAGNA_REPLAY_DATA": str(tmp_path / "none")}
    return backend


def test_killed_in_the_middle_of_training(loop: Backend, store: Store, tmp_path: Path) -> None:
    trainings, registry = Trainings(store), tmp_path / "registry"
    training = ("worker", "--queues", "train")
    first = loop.run(*training, wait_for="waiting for jobs in train")
    wait_until(lambda: int(trainings.of(PROJECT).get("step") or 0) >= 1, SECONDS, "the first step")
    first.kill()
    [id] = unfinished_jobs(registry)
    loop.run(*training, wait_for=f"job {id} goes on")
    second = loop.processes[-1]
    wait_until(lambda: trainings.of(PROJECT)["state"] == "idle", SECONDS, "the end of the job")
    known = trainings.of(PROJECT)
    assert (known["outcome"], known["changed"]) == ("candidate", "0"), known
    [version] = Registry(registry).versions(PROJECT)
    assert version.id == known["version"]
    assert unfinished_jobs(registry) == []
    assert not (registry / "jobs" / id / "run" / "states").exists()
    assert second.stop() == 0


def test_a_worker_has_one_beside_it_and_takes_it_along(loop: Backend, stub: StubLabelStudio, tmp_path: Path) -> None:
    stub.status["/api"] = 503  # nothing to train on
    worker = loop.worker()
    log = tmp_path / "training.log"
    wait_until(lambda: log.exists() and "waiting for jobs in train" in log.read_text(), SECONDS, "the training process")
    assert "waiting for jobs in interactive, instant, predict" in worker.output()
    assert worker.stop() == 0
    with (tmp_path / "registry" / "jobs" / "lock").open() as lock:  # it has let go of the registry
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
