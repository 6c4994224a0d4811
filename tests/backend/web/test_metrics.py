"""GET /metrics: what is in it after work through a real Redis, and that documents and code list the same metrics."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from backend.app import create_app
from backend.queue import jobs
from backend.queue.counters import OUTCOMES, REASONS, STAGES, Meter, note_gpu, pace_of, read_counters, reason_of
from backend.queue.store import Project, Store, connect
from backend.registry.registry import Registry
from backend.studio.client import LabelStudioError
from backend.web.metrics import METRICS, MetricRow
from backend.worker.delivery import Delivery
from backend.worker.rq_worker import LasagnaWorker
from backend.worker.runtime import Runtime
from lasagna import Lasagna
from lasagna.errors import CheckpointError, ConfigError, ImageError, QueryError, RegistryError
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, PROJECT, TOKEN, RedisServer, StubLabelStudio

ROOT = Path(__file__).resolve().parents[3]


class Answer:
    """An answer of /metrics, read by Prometheus's own parser."""

    def __init__(self, app: Flask) -> None:
        response = app.test_client().get("/metrics")
        assert response.status_code == 200
        assert response.content_type.startswith("text/plain; version=")
        self.families = {family.name: family for family in text_string_to_metric_families(response.text)}
        self.samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

        self.names = {name[0] for name in self.samples} | {
            family.name for family in self.families.values() if family.type == "histogram"
        }
        self.has_gpu = "lasagna_gpu_memory_used_bytes" in self.names

    def __getitem__(self, name: str | tuple[str, ...]) -> float:
        return self.samples[(name,) if isinstance(name, str) else name]


@pytest.fixture
def app(settings: Settings, registry: Registry) -> Flask:
    """Its requests wait for nothing: everything is posted."""
    changes = {"registry": str(registry.folder), "predict_deadline": 0.0}
    return create_app(settings.replaced(**changes))


@pytest.fixture
def worker(settings: Settings, store: Store, checkpoint: Path) -> Iterator[LasagnaWorker]:
    """A worker with a model, in this process; `work(burst=True)` does what is queued."""
    runtime = Runtime(Lasagna.from_pretrained(checkpoint, device="cpu"), settings, store)
    store.publish_model({"version": runtime.model.version})
    jobs.install(runtime)
    yield LasagnaWorker(store.redis, store, settings.batch_size)
    jobs.install(None)


def test_after_work(
    app: Flask, worker: LasagnaWorker, store: Store, settings: Settings, stub: StubLabelStudio, registry: Registry,
    make: Any,
) -> None:  # fmt: skip
    store.keep_project(PROJECT, Project(stub.url, TOKEN))
    tasks = [*stub.add_tasks(3), *stub.add_tasks(2, first=10, same_image=True)]
    tasks[0]["data"]["image"] = "/data/upload/3/none.png"
    before = Answer(app)
    body = {"tasks": tasks, "label_config": CONFIG, "project": PROJECT, "params": {}}
    assert app.test_client().post("/predict", json=body).json["waiting"] == 5
    app.test_client().get("/no/such/page")
    waiting = Answer(app)
    worker.work(burst=True, logging_level="WARNING")
    delivery = Delivery(settings, store)
    while delivery.step():
        pass
    version = registry.add(make(7.0), project="3", parent="", snapshot="", metrics={})
    registry.promote("3", version.id, "better")
    registry.rollback("3", "worse")
    found = Answer(app)

    assert (waiting["lasagna_tasks", "queued"], found["lasagna_tasks", "queued"]) == (5, 0)
    assert (waiting["lasagna_queue_jobs", "predict"], found["lasagna_queue_jobs", "predict"]) == (2, 0)
    assert waiting["lasagna_queue_oldest_job_seconds", "predict"] > 0
    assert (before["lasagna_failures_total", "image"], found["lasagna_failures_total", "image"]) == (0, 1)
    assert found["lasagna_images_total", "computed"] == 3
    assert found["lasagna_images_total", "reused"] == 1
    assert found["lasagna_predictions_delivered_total", "posted"] == 4 == len(stub.predictions)
    assert found["lasagna_tasks", "done"] == 4
    assert found["lasagna_queue_wait_seconds_count", "predict"] == 2
    assert (found["lasagna_batch_images_count"], found["lasagna_batch_images_sum"]) == (1, 3)
    assert found["lasagna_batch_images_bucket", "2.0"] == 0
    assert found["lasagna_batch_images_bucket", "4.0"] == found["lasagna_batch_images_bucket", "+Inf"] == 1
    assert found["lasagna_stage_images_total", "fetch"] == 5
    assert found["lasagna_stage_images_total", "post"] == 4
    assert all(found["lasagna_stage_seconds_total", stage] > 0 for stage in STAGES)
    assert found["lasagna_http_requests_total", "/predict", "POST", "200"] == 1
    assert found["lasagna_http_requests_total", "unknown", "GET", "404"] == 1
    assert found["lasagna_http_request_duration_seconds_count", "/predict"] == 1
    assert found["lasagna_promotions_total", "3"] == found["lasagna_rollbacks_total", "3"] == 1
    assert found["lasagna_redis_up"] == 1
    assert found["lasagna_model_info", worker_version(store)] == 1
    pace = pace_of(read_counters(store.redis), worker_version(store))
    assert pace.images == 3
    assert 0 < (pace.seconds_per_image or 0) < 60
    fallen = [name for name, value in before.samples.items() if "_total" in name[0] and found.samples[name] < value]
    assert fallen == []
    without_gpu = {"lasagna_gpu_memory_used_bytes", "lasagna_gpu_memory_total_bytes"}
    assert {row.name for row in METRICS} - found.names == (set() if found.has_gpu else without_gpu)
    parts = re.compile(r"_(bucket|sum|count|created)$")
    assert {parts.sub("", name) for name in found.names if name.startswith("lasagna_")} <= {row.name for row in METRICS}


def test_workers_that_were_killed_do_not_count(app: Flask, store: Store) -> None:
    killed, living = (LasagnaWorker(store.redis, store, 1) for _ in range(2))
    for each in (killed, living):
        each.register_birth()
    store.redis.hset(killed.key, "last_heartbeat", "2026-01-01T00:00:00.000000Z")
    found = Answer(app)
    assert (found["lasagna_workers", "predict"], found["lasagna_workers", "train"]) == (1, 0)


def worker_version(store: Store) -> str:
    return str((store.model() or {})["version"])


def test_without_redis_requests_are_still_there(checkpoint: Path) -> None:
    environ = {"LASAGNA_REDIS_URL": "redis://127.0.0.1:1/0", "LASAGNA_MODEL": str(checkpoint)}
    app = create_app(Settings.load(environ))
    app.test_client().get("/health")
    found = Answer(app)
    assert found["lasagna_redis_up"] == 0
    assert found["lasagna_http_requests_total", "/health", "GET", "200"] == 1
    assert "lasagna_tasks" not in found.names


def test_memory_of_gpus_that_were_read_lately(app: Flask, store: Store) -> None:
    now = int(store.now())
    for name, age in (("gpu-1:GPU-3f", 10), ("gpu-2:GPU-9a", 3600)):
        store.redis.hset("lasagna:gpus", name, json.dumps({"used": 5 << 30, "total": 80 << 30, "time": now - age}))
    found = Answer(app)
    used = {name: value for name, value in found.samples.items() if name[0] == "lasagna_gpu_memory_used_bytes"}
    assert used == {("lasagna_gpu_memory_used_bytes", "GPU-3f", "gpu-1"): 5 << 30}
    assert found["lasagna_gpu_memory_total_bytes", "GPU-3f", "gpu-1"] == 80 << 30


def test_a_process_without_gpu_notes_none(store: Store) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    note_gpu(store.redis)
    assert store.redis.exists("lasagna:gpus") == 0


def test_the_format_that_is_asked_for(app: Flask) -> None:
    answer = app.test_client().get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.content_type.startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_the_password_is_asked_for(settings: Settings) -> None:
    app = create_app(settings.replaced(basic_auth="a:secret"))
    assert app.test_client().get("/metrics").status_code == 401
    assert app.test_client().get("/metrics", auth=("a", "secret")).status_code == 200


@pytest.mark.parametrize("row", METRICS, ids=lambda row: row.name)
def test_names_follow_the_rules_of_prometheus(row: MetricRow) -> None:
    """prometheus.io/docs/practices/naming: a prefix, base units, `_total` for what is counted up, and only for that."""
    assert re.fullmatch(r"lasagna(_[a-z]+)+", row.name)
    assert row.name.endswith("_total") == (row.type == "counter") or row.name == "lasagna_gpu_memory_total_bytes"
    assert not re.search(r"milli|minutes|hours|kilo|mega|percent|counter|gauge|histogram", row.name)
    assert row.help.endswith(".")
    assert not {"le", "quantile"} & set(row.labels)


def test_documents_list_what_there_is() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(lasagna_\w+)` \| (\w+) \|([^|]*)\|", text, re.MULTILINE)
    labels = {name: tuple(re.findall(r"`(\w+)`", words)) for name, _, words in listed}
    assert [(name, kind) for name, kind, _ in listed] == [(row.name, row.type) for row in METRICS]
    assert labels == {row.name: row.labels for row in METRICS}
    used = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\blasagna_\w+", text)}
    assert used == {row.name for row in METRICS}
    for value in (*STAGES, *REASONS, *OUTCOMES):
        assert f"`{value}`" in text


class TestAlerts:
    FILE = ROOT / "docs" / "alerts.yml"

    def test_they_are_about_metrics_that_there_are(self) -> None:
        rows = {row.name: row for row in METRICS}
        [group] = yaml.safe_load(self.FILE.read_text(encoding="utf-8"))["groups"]
        assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])
        for rule in group["rules"]:
            used = re.findall(r"\b(lasagna_\w+)(?:{([^}]*)})?", rule["expr"])
            assert used
            for name, matchers in used:
                assert set(re.findall(r"(\w+)=", matchers)) <= set(rows[name].labels)
            assert rule["annotations"].keys() == {"summary", "action"}

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here: apt-get install prometheus")
    def test_each_is_set_off_and_none_where_all_is_well(self) -> None:
        tests = Path(__file__).with_name("alerts_test.yml")
        tried = set(re.findall(r"Lasagna\w+", tests.read_text(encoding="utf-8")))
        assert tried == set(re.findall(r"alert: (\w+)", self.FILE.read_text(encoding="utf-8")))
        done = subprocess.run(["promtool", "test", "rules", str(tests)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImageError("x"), "image"),
        (ConfigError("x"), "configuration"),
        (QueryError("x"), "configuration"),
        (LabelStudioError("x", 404), "label_studio"),
        (LabelStudioError("x", 502), "unreachable"),
        (LabelStudioError("x"), "unreachable"),
        (RegistryError("x"), "version"),
        (CheckpointError("x"), "version"),
        (RuntimeError("x"), "other"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_reasons(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
    assert reason in REASONS


def test_what_was_gathered_while_redis_was_gone_is_added_later(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    meter = Meter(client)
    meter.count("clicks:answered")
    redis_server.stop()
    meter.flush()
    meter.count("clicks:answered")
    redis_server.start()
    meter.flush()
    meter.flush()
    assert read_counters(client) == {"clicks:answered": 2.0}
    client.close()
