"""Which labels a version cannot be asked for: by its vocabulary, its head, the question; and who says so."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.app import create_app
from backend.instant.heads import ProjectHeads
from backend.instant.taught import TaughtNames
from backend.queue.store import Project, Store
from backend.registry.registry import Registry
from backend.worker.runtime import Runtime
from lab.bench.peer_models import write_model
from lasagna import Lasagna
from lasagna.checkpoint.folder import checkpoint_version
from lasagna.checkpoint.vocabulary import Taught, Vocabulary, write_vocabulary
from lasagna.instant.store import HeadStore
from lasagna.labels.configuration import parse_label_config
from lasagna.labels.question import ProjectQuestion
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, PROJECT, TOKEN, StubLabelStudio

PLAN = parse_label_config(CONFIG)
NAMES = [query.name for query in PLAN.classes]
BODY = {"project": PROJECT, "schema": CONFIG, "hostname": "http://127.0.0.1:8080", "access_token": TOKEN}


@pytest.fixture
def taught(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that was taught cats alone."""
    folder = shutil.copytree(checkpoint, tmp_path / "taught")
    write_vocabulary(folder, Vocabulary({"cat": Taught(4)}))
    return folder


@pytest.fixture
def settings(redis_db: str, taught: Path, registry: Registry) -> Settings:
    return Settings.load(
        {"LASAGNA_REDIS_URL": redis_db, "LASAGNA_MODEL": str(taught), "LASAGNA_REGISTRY": str(registry.folder)}
    )


def question(**params: Any) -> ProjectQuestion:
    return ProjectQuestion.of(PLAN.images, params, {})


def made(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray | None]]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :128]
    disc = (y - rng.integers(25, 70)) ** 2 + (x - rng.integers(30, 100)) ** 2 < rng.integers(12, 22) ** 2
    image = np.where(disc[..., None], [230, 200, 60], [40, 60, 90]) + rng.normal(size=(96, 128, 3)) * 12
    return image.clip(0, 255).astype(np.uint8), {"Sky": disc, "Cat": ~disc}


def test_by_the_vocabulary_of_the_version(
    settings: Settings, registry: Registry, checkpoint: Path, tmp_path: Path
) -> None:
    names = TaughtNames(settings, registry)
    own = checkpoint_version(settings.model)
    rest = [name for name in NAMES if name != "Cat"]
    assert names.unknown(PROJECT, own, question()) == rest
    assert names.unknown(PROJECT, f"{own}~3f2a9c", question()) == rest
    assert names.unknown(PROJECT, own, question(guess_unknown=True)) == []
    assert names.unknown(PROJECT, "somebody-else", question()) == []
    listed = registry.add(write_model("eomt", tmp_path / "eomt"), project="3", parent="", snapshot="", metrics={})
    for params in ({}, {"guess_unknown": True}):
        unknown = names.unknown(PROJECT, listed.id, question(**params))
        assert "Cat" in unknown, "a closed list cannot guess"
        assert "Sky" not in unknown
    assert (names.is_closed(listed.id), names.is_closed(own)) == (True, False)
    plain = registry.add(checkpoint, project="3", parent="", snapshot="", metrics={}, name="plain")
    assert names.unknown(PROJECT, plain.id, question()) == [], "it does not say what it was taught"


@pytest.mark.parametrize("trouble", ["damaged", "not there yet"])
def test_what_could_not_be_read_is_read_again(
    settings: Settings, registry: Registry, taught: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.add(taught, project="3", parent="", snapshot="", metrics={}, name="late")
    names = TaughtNames(settings, registry)
    file = version.checkpoint / "vocabulary.json"
    aside = version.folder.with_name(".aside")
    if trouble == "damaged":
        text = file.read_text()
        file.chmod(0o644)
        file.write_text("{")
    else:
        version.folder.rename(aside)
    assert names.unknown(PROJECT, version.id, question()) == []
    if trouble == "damaged":
        file.write_text(text)
    else:
        aside.rename(version.folder)
    assert names.unknown(PROJECT, version.id, question()) == [], "it is not looked for with every request"
    monkeypatch.setattr("backend.instant.taught.AGAIN", 0.0)
    assert names.unknown(PROJECT, version.id, question()) == [name for name in NAMES if name != "Cat"]


def test_what_a_head_has_learnt_is_known(settings: Settings, registry: Registry) -> None:
    model = Lasagna.from_pretrained(settings.model)
    heads, names = ProjectHeads(registry.folder), TaughtNames(settings, registry)
    store = HeadStore(heads.folder(PROJECT, model.version))
    for number in range(6):
        image, masks = made(number)
        store.put(model.observe(image, masks, str(number)))
        head = store.refresh()
        assert head is not None
        unknown = names.unknown(PROJECT, f"{model.version}+h{head.number}~3f2a9c", question())
        assert ("Sky" in unknown) != head.serves, "a head that does not draw makes nothing known"
    assert head.serves
    assert "Dog" in unknown
    assert "Sky" in names.unknown(PROJECT, f"{model.version}+h99", question()), "that head is not kept any more"


def test_the_backend_says_it(settings: Settings, store: Store) -> None:
    client = create_app(settings).test_client()
    rest = [name for name in NAMES if name != "Cat"]
    answer = client.post("/setup", json=BODY).json
    assert answer is not None
    assert answer["unknown"] == rest
    store.publish_model({"version": checkpoint_version(settings.model)})
    page = " ".join(client.get("/status").text.split())
    assert f"never taught: {', '.join(rest)}. Draw these; the model learns from your corrections." in page
    guessing = client.post("/setup", json={**BODY, "extra_params": {"guess_unknown": True}}).json
    assert guessing is not None
    assert guessing["unknown"] == []
    assert guessing["model_version"] != answer["model_version"], "it is another question"
    assert "never taught" not in client.get("/status").text
    refused = client.post("/setup", json={**BODY, "extra_params": {"guess_unknown": "yes"}})
    assert "guess_unknown is true or false, not 'yes'" in refused.text


def test_the_setting_is_that_of_every_project(settings: Settings, store: Store) -> None:
    client = create_app(settings.replaced(guess_unknown=True)).test_client()
    answer = client.post("/setup", json=BODY).json
    assert answer is not None
    assert answer["unknown"] == []
    own = client.post("/setup", json={**BODY, "extra_params": {"guess_unknown": False}}).json
    assert own is not None
    assert own["unknown"] != [], "a project's own comes first"


@pytest.mark.parametrize("guess", [False, True])
def test_the_worker_draws_what_is_known(
    settings: Settings, store: Store, stub: StubLabelStudio, taught: Path, guess: bool
) -> None:
    from tests.backend.worker.test_runtime import ask, predict

    store.keep_project(PROJECT, Project(stub.url, TOKEN, params={"threshold": 0.01}))  # everything present
    model = Lasagna.from_pretrained(taught, device="cpu")
    runtime = Runtime(model, settings.replaced(guess_unknown=guess), store)
    assert predict(runtime, ask(runtime, stub.add_tasks(1)))["predicted"] == 1
    post = next(iter(store.take_posts()))
    drawn = {label for one in post.prediction["result"] for label in one["value"].get(one["type"], ())}
    assert drawn == ({"Cat", "Dog", "Sky"} if guess else {"Cat"})
