"""`LasagnaBackend` under label-studio-ml 1.0.9 (installed), and under the calling convention of 2.x (re-created)."""

import os
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from backend.queue.services import Service, free_port
from backend.queue.store import Store
from lasagna.checkpoint.folder import checkpoint_version
from lasagna.errors import ConfigError
from tests.backend.backend_helpers import CONFIG, PROJECT, TOKEN, asked

with warnings.catch_warnings():  # of 2023: invalid escape sequences, and what its own dependencies warn of
    warnings.simplefilter("ignore")
    import label_studio_ml.model

    import backend.model
    from backend.queue.heartbeat import beating
from backend.model import LasagnaBackend

TASKS = [{"id": n, "project": 3, "data": {"image": f"/data/upload/3/{n}.png"}} for n in (1, 2)]
PREDICTION = {"model_version": "tiny-1", "score": 0.25, "result": []}


@pytest.fixture(autouse=True)
def worker(store: Store, redis_db: str, checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of the server, and something that finishes what is queued."""
    monkeypatch.setenv("LASAGNA_REDIS_URL", redis_db)
    monkeypatch.setenv("LASAGNA_MODEL", str(checkpoint))
    monkeypatch.setenv("LASAGNA_PREDICT_DEADLINE", "3")
    backend.model._predictor.cache_clear()

    def work() -> None:
        for key, _ in store.start(store.keys("queued"), "job"):
            store.finish(key, PREDICTION)

    with beating(0.02, work, "worker"):
        yield
    backend.model._predictor().store.redis.close()
    backend.model._predictor.cache_clear()


class TestVersion1:
    """label-studio-ml 1.0.9: one model per /setup, kept for every /predict."""

    @pytest.fixture
    def manager(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        manager = label_studio_ml.model.LabelStudioMLManager
        monkeypatch.setattr(manager, "_current_model", {})
        manager.initialize(LasagnaBackend, model_dir=str(tmp_path))
        return manager

    def test_setup_and_predict(self, manager: Any, store: Store) -> None:
        manager.fetch(PROJECT, CONFIG, False, hostname="http://ls", access_token=TOKEN, model_version=None)
        predictions, _ = manager.predict(TASKS, PROJECT, CONFIG, False, True, login=None, password=None, context=None)
        assert predictions == [PREDICTION, PREDICTION]
        assert store.project("3").url == "http://ls"
        assert store.project("3").token == TOKEN

    def test_fit(self, manager: Any, store: Store) -> None:
        model = LasagnaBackend(label_config=CONFIG, train_output={})
        assert model.process_event("ANNOTATION_CREATED", {"project": {"id": 3}}, "1", {}) == {}
        assert model.fit(iter([]), None, event="PROJECT_UPDATED", data={"project": {"id": 3}}) == {}
        assert [event["action"] for event in store.events()] == ["PROJECT_UPDATED", "ANNOTATION_CREATED"]
        assert store.events()[0]["project"] == "3"

    def test_without_configuration(self) -> None:
        with pytest.raises(ConfigError, match="no labelling configuration"):
            LasagnaBackend().predict(TASKS)

    @pytest.mark.slow
    def test_its_own_server(self, tmp_path: Path, store: Store) -> None:
        """`label-studio-ml init` and `start`, as docs/label-studio-ml.md has them, asked over HTTP as 1.x asks."""
        programs = Path(sys.executable).parent
        environ = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}
        (tmp_path / "model.py").write_text("from backend.model import LasagnaBackend\n")
        make = [programs / "label-studio-ml", "init", "served", "--script", "model.py:LasagnaBackend"]
        subprocess.run(make, cwd=tmp_path, env=environ, check=True, capture_output=True)
        port, log = free_port(), tmp_path / "log"
        start = ["start", tmp_path / "served", "--port", str(port), "--host", "127.0.0.1"]
        server = Service("label-studio-ml", [programs / "label-studio-ml", *start], log=log, env=environ)
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            try:
                return requests.get(f"{url}/health", timeout=2).ok
            except requests.ConnectionError:
                return False

        try:
            server.wait_until(answers, 120)
            setup = {"project": PROJECT, "schema": CONFIG, "hostname": "http://ls", "access_token": TOKEN}
            assert requests.post(f"{url}/setup", json=setup, timeout=20).ok, log.read_text()
            request = {"tasks": TASKS, "project": PROJECT, "label_config": CONFIG, "params": {"context": None}}
            answer = requests.post(f"{url}/predict", json=request, timeout=20)
            assert answer.json()["results"] == [PREDICTION, PREDICTION], log.read_text()
        finally:
            server.stop()
        assert store.project("3").url == "http://ls"


class Base2:
    """What 2.x's base class does that a model class can notice: values are kept per project in a cache of the server,
    `label_config` is a property on it, `setup` is called by the constructor, and `predict` gets the context by name."""

    INITIAL_MODEL_VERSION = "0.0.1"
    cache = sqlite3.connect(":memory:", check_same_thread=False)

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.set("label_config", label_config)
        if not self.get("model_version"):
            self.set("model_version", self.INITIAL_MODEL_VERSION)
        self.setup()

    def setup(self) -> None: ...

    def get(self, key: str) -> str | None:
        self.cache.execute("CREATE TABLE IF NOT EXISTS kept (project, key, value, PRIMARY KEY (project, key))")
        query = "SELECT value FROM kept WHERE project = ? AND key = ?"
        found = self.cache.execute(query, (self.project_id, key)).fetchone()
        return found[0] if found else None

    def set(self, key: str, value: str) -> None:
        self.get(key)
        self.cache.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (self.project_id, key, value))

    @property
    def label_config(self) -> str | None:
        return self.get("label_config")


class TestVersion2:
    """label-studio-ml 2.x: a new object for every request."""

    @pytest.fixture
    def model_class(self) -> Any:
        Base2.cache.execute("DROP TABLE IF EXISTS kept")
        # the same class body on the other base, as where 2.x is installed
        return type("LasagnaBackend", (Base2,), dict(vars(LasagnaBackend)))

    def test_setup_says_the_version_of_the_predictions(self, model_class: Any, checkpoint: Any) -> None:
        model = model_class(project_id="3", label_config=CONFIG)
        assert model.get("model_version") == asked(checkpoint_version(checkpoint), CONFIG)

    def test_predict(self, model_class: Any) -> None:
        model = model_class(project_id="3", label_config=CONFIG)
        for context in (None, {}):  # 2.x gives {} where Label Studio gives none
            assert model.predict(TASKS, context=context, login=None, password=None) == [PREDICTION, PREDICTION]

    def test_interactive(self, model_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("backend.web.predictions._CLICK_SECONDS", 0.2)
        model = model_class(project_id="3", label_config=CONFIG)
        context = {"result": [{"from_name": "kp", "value": {"x": 1, "y": 1, "keypointlabels": ["Cat"]}}]}
        [answer] = model.predict(TASKS[:1], context=context)
        assert answer["result"] == []

    def test_fit(self, model_class: Any, store: Store) -> None:
        model = model_class("3", CONFIG)
        model.fit("START_TRAINING", {"project": {"id": 3}, "action": "START_TRAINING"})
        assert store.events()[0]["action"] == "START_TRAINING"

    def test_is_cheap_to_construct(self, model_class: Any) -> None:
        import time

        started = time.monotonic()
        for _ in range(20):
            model_class(project_id="3", label_config=CONFIG)
        assert time.monotonic() - started < 2


def test_a_bad_task_fails_alone() -> None:
    model = LasagnaBackend(label_config=CONFIG)
    answer = model.predict([TASKS[0], {"id": 9, "data": {}}, None])
    assert answer == [PREDICTION, [], []]


def test_without_redis_the_model_can_still_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    backend.model._predictor().store.redis.close()
    backend.model._predictor.cache_clear()
    monkeypatch.setenv("LASAGNA_REDIS_URL", "redis://127.0.0.1:1/0")
    Base2.cache.execute("DROP TABLE IF EXISTS kept")
    model_class = type("LasagnaBackend", (Base2,), dict(vars(LasagnaBackend)))
    assert model_class(project_id="3", label_config=CONFIG).fit("ANNOTATION_CREATED", {}) == {}
