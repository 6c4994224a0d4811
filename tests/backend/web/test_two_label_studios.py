"""Two real Label Studios on one backend, each with a project 1: nothing of one is taken for the other's."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner

from backend.commands.jobs import jobs
from backend.commands.train import train
from backend.commands.versions import list_models, promote
from backend.demo.local_label_studio import LocalLabelStudio
from backend.loop.trainings import Trainings
from backend.queue.store import Store
from backend.registry.label_histories import LabelHistories
from backend.registry.registry import Registry
from backend.studio.project_id import project_uid
from backend.studio.version_names import base_version
from tests.backend.backend_helpers import Backend, wait_until
from tests.backend.loop.loop_helpers import rectangle, square

pytestmark = pytest.mark.label_studio

LABELS = (("Cat", "Sky"), ("Dog", "Road"))


def config_of(names: tuple[str, ...]) -> str:
    labels = "".join(f'<Label value="{name}"/>' for name in names)
    return (
        '<View><Image name="image" value="$image"/>'
        f'<RectangleLabels name="rect" toName="image">{labels}</RectangleLabels></View>'
    )


class Studio:
    """A Label Studio with a project 1 of four photos, which the backend is connected to."""

    def __init__(self, running: LocalLabelStudio, labels: tuple[str, ...], folder: Path, backend: Backend) -> None:
        self.url, self.api = running.url, running.api()
        self.project = self.api.create_project(f"of {labels[0]}", config_of(labels))
        self.uid = project_uid(self.api.project(self.project))
        photos = [folder / f"{labels[0]}-{number}.png" for number in range(4)]
        for number, path in enumerate(photos):
            path.write_bytes(square(number)[0])
        self.tasks = self.api.upload(self.project, photos)
        self.api.connect_backend(self.project, backend.url)

    def opened(self, index: int) -> dict[str, Any]:
        """The newest prediction of a task that is opened."""
        found = self.api.open_task(self.project, self.tasks[index])["predictions"]
        return dict(max(found, key=lambda prediction: prediction["id"]))

    def correct(self, index: int, label: str) -> None:
        region = rectangle(square(index)[1])
        region["value"]["rectanglelabels"] = [label]
        self.api.create_annotation(self.tasks[index], [region], lead_time=3.0)


@pytest.fixture
def studios(
    installed_label_studio: Any, tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Studio, Studio]]:
    backend.environ |= {"LASAGNA_TRAIN_WHEN": "every 3", "LASAGNA_BATCH_SIZE": "1"}
    for name, value in backend.environ.items():
        monkeypatch.setenv(name, value)
    with (
        LocalLabelStudio(installed_label_studio, tmp_path / "one") as one,
        LocalLabelStudio(installed_label_studio, tmp_path / "two") as two,
    ):
        backend.serve()
        backend.run("worker", "--queues", "interactive,instant,predict", wait_for="waiting for jobs")
        first = Studio(one.wait(), LABELS[0], tmp_path, backend)
        time.sleep(1.1)  # Label Studio tells a project of another by the second in which it was made
        yield first, Studio(two.wait(), LABELS[1], tmp_path, backend)


def run(command: Any, *arguments: str) -> str:
    found = CliRunner().invoke(command, list(arguments))
    return found.output if found.exception is None else str(found.exception) + found.output


def test_nothing_mixes(
    studios: tuple[Studio, Studio],
    backend: Backend,
    store: Store,
    make: Callable[[float], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = studios
    assert (one.project, two.project) == (1, 1)
    registry, histories = Registry(tmp_path / "registry"), LabelHistories(tmp_path / "registry")

    # predictions: each is asked its own labels, and the label histories are apart
    for studio, labels in zip(studios, LABELS, strict=True):
        found = {
            name
            for index in range(3)
            for region in studio.opened(index)["result"]
            for name in region["value"].get("rectanglelabels", ())
        }
        assert found <= set(labels)
        assert histories.of(studio.uid).seen[-1].labels == {"image": sorted(labels)}

    # a champion of one serves the other not
    own = base_version(two.opened(0)["model_version"])
    version = registry.add(make(3.0), project=one.uid, parent="", snapshot="", metrics={})
    assert "say which one" in run(promote, "1", version.id)
    assert "is now served by" in run(promote, "1", version.id, "--server", one.url)
    served = [versions(backend, studio.uid) for studio in studios]
    assert [base_version(each) for each in served] == [version.id, own]
    answer = requests.get(f"{backend.url}/versions?project=1", timeout=10)
    assert answer.status_code == 400
    assert all(url in answer.json()["error"] for url in (one.url, two.url))
    drawn = [base_version(studio.opened(3)["model_version"]) for studio in studios]
    assert drawn == [version.id, own]
    monkeypatch.setenv("COLUMNS", "300")
    assert f"champion of project 1 of {one.url}" in run(list_models)

    # corrections: the webhooks of one count for it alone, and teach its head alone
    two.correct(0, "Dog")
    wait_until(lambda: "+h" in versions(backend, two.uid), 90, "a head of the second project")
    assert "+h" not in versions(backend, one.uid)
    events = [event["project"] for event in store.events() if event["action"] == "ANNOTATION_CREATED"]
    assert events == [two.uid]

    # jobs: of both in one list, by name
    assert "say which one" in run(train, "--project", "1")
    run(train, "--project", "1", "--server", two.url)
    assert store.events(1)[0]["project"] == two.uid
    Trainings(store).note(two.uid, state="queued", reason="asked for")
    report = json.loads(run(jobs, "--json"))
    assert list(report["training"]) == [f"1 of {two.url}"]
    assert list(report["learning"]) == [f"1 of {studio.url}" for studio in sorted(studios, key=lambda s: s.uid)]
    body = {"project": 1, "dry_run": True}
    assert requests.post(f"{backend.url}/jobs", json=body, timeout=10).status_code == 400
    job = requests.post(f"{backend.url}/jobs", json={**body, "server": one.url}, timeout=10).json()
    ended = wait_until(lambda: ended_job(backend, job["id"]), 60, "the job")
    assert (ended["title"], ended["uid"]) == ("of Cat", one.uid)

    # pages: the report of each by its address, and both on the status page
    for studio, title in ((one, "of Cat"), (two, "of Dog")):
        for address in (f"report/{studio.uid}", f"report/1?server={studio.url}"):
            assert title in requests.get(f"{backend.url}/{address}", timeout=60).text
    assert requests.get(f"{backend.url}/report/1", timeout=60).status_code == 400
    page = requests.get(f"{backend.url}/status", timeout=60).text
    for studio in studios:
        assert f'href="report/{studio.uid}"' in page
        assert f"1 of {studio.url}" in page


def versions(backend: Backend, project: str) -> str:
    return str(requests.get(f"{backend.url}/versions?project={project}", timeout=10).json()["versions"][0])


def ended_job(backend: Backend, id: str) -> dict[str, Any] | None:
    job = requests.get(f"{backend.url}/jobs/{id}", timeout=10).json()
    return job if job["state"] in ("done", "failed") else None
