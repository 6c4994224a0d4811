"""Models of other makers in the worker and behind the real queue: small random ones, made by transformers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.instant.changes import EVERYTHING
from backend.loop.job import TrainingJob
from backend.loop.trainings import new_job
from backend.queue.living_workers import in_words, predicting_workers
from backend.queue.store import Project, Store, connect
from backend.worker.runtime import Runtime
from lab.bench.peer_models import KINDS, write_model
from lasagna.checkpoint.folder import Calibration, write_calibration
from lasagna.errors import TrainingError
from lasagna.models.loading import load_model
from lasagna.settings import Settings
from tests.backend.backend_helpers import PROJECT, TOKEN, Backend, RedisServer, StubLabelStudio, asked, wait_until
from tests.backend.worker.test_runtime import ask, predict

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="sky"/><Label value="cars"/><Label value="kitchen"/></BrushLabels>
<KeyPointLabels name="kp" toName="image" smart="true"><Label value="sky"/></KeyPointLabels>
<TextArea name="question" toName="image" smart="true"/><TextArea name="answer" toName="image"/></View>"""
CLOSED = ("eomt", "mask2former", "oneformer")


def write(kind: str, folder: Path) -> Path:
    """A model that finds about half of what it is asked."""
    write_model(kind, folder)
    model = load_model(folder, device="cpu")
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    found = [one.probability for one in model.segment(photo, ["sky", "car"])]
    write_calibration(folder, Calibration(offset=float(np.mean([np.log(p / (1 - p)) for p in found])) - 1e-3))
    return folder


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def runtime(kind: str, tmp_path: Path, settings: Settings, store: Store, stub: StubLabelStudio) -> Runtime:
    folder = write(kind, tmp_path / kind)
    store.keep_project(PROJECT, Project(stub.url, TOKEN))
    return Runtime(load_model(folder, device="cpu"), settings.replaced(model=str(folder)), store)


def test_a_task_is_predicted_and_what_is_not_served_is_said(runtime: Runtime, kind: str, stub: StubLabelStudio) -> None:
    runtime.warm_up()
    works = ask(runtime, stub.add_tasks(2), CONFIG)
    assert predict(runtime, works) == {"predicted": 2, "cached": 0, "failed": 0, "later": 0}
    for post in runtime.store.take_posts():
        labels = {label for one in post.prediction["result"] for label in one["value"].get("brushlabels", ())}
        assert labels <= ({"sky", "cars"} if kind in CLOSED else {"sky", "cars", "kitchen"})
    request = {"project": PROJECT, "version": runtime.model.version, "task": 1}
    request |= {"data": json.dumps({"image": "/data/upload/3/1.png"}), "config": runtime.store.keep_config(CONFIG)}
    value = {"x": 40.0, "y": 40.0, "keypointlabels": ["sky"]}
    drawn = {"type": "keypointlabels", "from_name": "kp", "to_name": "image", "is_positive": True, "value": value}
    assert "cannot answer clicks and boxes; draw by hand" in runtime.click({**request, "context": [drawn]})["error"]
    written = {"type": "textarea", "from_name": "question", "to_name": "image", "value": {"text": ["what is this?"]}}
    [answer] = runtime.click({**request, "context": [written]})["prediction"]["result"]
    assert "cannot answer questions in words" in answer["value"]["text"][0]


@pytest.mark.parametrize("kind", ["clipseg"])
def test_corrections_are_not_learnt_and_it_is_said(runtime: Runtime, kind: str) -> None:
    changes = runtime.learning.changes
    changes.note(PROJECT, [EVERYTHING])
    runtime.learn(PROJECT)
    assert changes.waiting(PROJECT) == {}
    assert "cannot learn from each correction at once" in changes.said(PROJECT)["reason"]


def test_a_training_refuses_in_words(tmp_path: Path) -> None:
    folder = write_model("clipseg", tmp_path / "clipseg")
    id = new_job(tmp_path / "registry", PROJECT, "by hand")
    job = TrainingJob(tmp_path / "registry", id, Settings.load({}, model=str(folder)), lambda: pytest.fail("asked"))
    with pytest.raises(TrainingError, match=r"type 'clipseg', which is not fine-tuned here.*LASAGNA_MODEL=nano"):
        job.run()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Backend]:
    redis = RedisServer(tmp_path)
    redis.start()
    found = Backend(tmp_path, redis.url, write("sam3", tmp_path / "sam3"))
    found.environ |= {"LASAGNA_PREDICT_DEADLINE": "30"}
    yield found
    found.end()
    redis.stop()


@pytest.mark.slow
def test_through_the_real_queue(processes: Backend, stub: StubLabelStudio, tmp_path: Path) -> None:
    """`lasagna serve` and `lasagna worker` with SAM 3: /setup says what it cannot do, /predict answers."""
    version = load_model(tmp_path / "sam3", device="cpu").version
    processes.serve()
    processes.worker()
    store = Store(connect(processes.environ["LASAGNA_REDIS_URL"]))
    said: dict[str, Any] = processes.setup(stub.url).json()
    assert said["model_version"] == asked(version)
    assert "answer clicks and boxes" in said["cannot"]
    answer = processes.predict(stub.add_tasks(3)).json()
    assert [entry["model_version"] for entry in answer["results"]] == [asked(version)] * 3
    words = wait_until(lambda: in_words(predicting_workers(store), store), 10, "the worker")
    assert words.startswith(f"1 with the model {version}; it cannot answer clicks")
    assert (store.model() or {})["about"][0] == f"{version}: licence apache-2.0"
    store.redis.close()
