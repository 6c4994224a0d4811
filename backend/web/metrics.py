"""GET /metrics: what Prometheus collects, by the library `prometheus_client`.

Two sources, because the processes differ:

- Requests are counted in the memory of the web process, which is one process (`backend._wsgi`). Several web processes
  are several targets of Prometheus, as it expects.
- Everything else happens in workers, of which there may be many, on machines that Prometheus does not know and behind
  firewalls that it does not pass. They keep their numbers in Redis, which all of them reach anyway
  (`backend.queue.counters`), and this process reads them at the moment of asking, with the depth of the queues. So one
  target shows the whole, nothing is lost when a worker dies, and no worker needs a port. A push gateway would be one
  more service that does the same.

What always holds: every metric is a row of `METRICS`, which docs/operations.md lists; label values come from lists in
the code, except versions, projects and GPUs; counters of things that have not happened yet are 0; without Redis the
answer has the requests and `lasagna_redis_up 0`.
"""

import collections
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import redis
from flask import Blueprint, Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from rq.utils import now

from backend.loop.trainings import Trainings
from backend.queue.counters import BATCH_BOUNDS, OUTCOMES, REASONS, STAGES, WAIT_BOUNDS, read_counters, read_gpus
from backend.queue.jobs import QUEUES, find_jobs, queue
from backend.queue.living_workers import living_workers
from backend.queue.store import Store
from backend.registry.registry import Registry
from backend.studio.project_id import number_of
from lasagna.errors import RegistryError

disable_created_metrics()  # a second series for each counter, of which we make no use

_REQUEST_BOUNDS = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 45.0, 60.0, 100.0)
"""Seconds; Label Studio waits 1 s for a webhook, 3 for /setup, 100 for /predict."""


class MetricRow(NamedTuple):
    """A metric by its name as it is in the answer, without a histogram's endings."""

    name: str
    type: Literal["counter", "gauge", "histogram", "info"]
    labels: tuple[str, ...]
    help: str


METRICS = tuple(
    MetricRow(*row)
    for row in (
        ("lasagna_http_requests_total", "counter", ("endpoint", "method", "status"), "Requests answered."),
        ("lasagna_http_request_duration_seconds", "histogram", ("endpoint",), "Time to the answer."),
        ("lasagna_redis_up", "gauge", (), "1 where Redis answers; else what comes from it is missing."),
        ("lasagna_workers", "gauge", ("queue",), "Living workers that take jobs from a queue."),
        ("lasagna_queue_jobs", "gauge", ("queue",), "Jobs that wait."),
        ("lasagna_queue_oldest_job_seconds", "gauge", ("queue",), "How long the next job has waited; 0 without one."),
        ("lasagna_queue_wait_seconds", "histogram", ("queue",), "From being queued to being started."),
        ("lasagna_tasks", "gauge", ("state",), "Tasks by state; done and failed ones of the last 7 days."),
        ("lasagna_batch_images", "histogram", (), "Images that the model was given together."),
        ("lasagna_images_total", "counter", ("source",), "Predictions made: computed, or reused of an equal image."),
        ("lasagna_stage_seconds_total", "counter", ("stage",), "Time that workers spent in a stage."),
        ("lasagna_stage_images_total", "counter", ("stage",), "Images that went through a stage."),
        ("lasagna_clicks_total", "counter", ("outcome",), "Interactive requests that a worker took."),
        (
            "lasagna_corrections_total",
            "counter",
            ("outcome",),
            "Corrections of the instant head.",
        ),
        ("lasagna_events_aside_total", "counter", (), "Events of Label Studio that could not be handled."),
        (
            "lasagna_predictions_delivered_total",
            "counter",
            ("way",),
            "In the answer to /predict, posted later, or its task gone.",
        ),
        ("lasagna_failures_total", "counter", ("reason",), "Tasks that failed, by kind of reason."),
        ("lasagna_tasks_lost_total", "counter", (), "Tasks whose record Redis has no more."),
        ("lasagna_postponements_total", "counter", (), "Attempts put off because Label Studio did not answer."),
        ("lasagna_gpu_memory_used_bytes", "gauge", ("host", "gpu"), "Memory of a worker's GPU in use, by anything."),
        ("lasagna_gpu_memory_total_bytes", "gauge", ("host", "gpu"), "Memory of a worker's GPU."),
        ("lasagna_trainings", "gauge", ("state",), "Fine-tunes that wait or run."),
        ("lasagna_trainings_ended_total", "counter", ("outcome",), "Fine-tunes that ended."),
        (
            "lasagna_promotions_total",
            "counter",
            ("project",),
            "Versions that began to serve a project: its number, its uid where several have it.",
        ),
        ("lasagna_rollbacks_total", "counter", ("project",), "Returns to the version before."),
        ("lasagna_model_info", "info", ("version",), "The worker's own model."),
    )
)
_ROWS: Mapping[str, MetricRow] = {row.name: row for row in METRICS}


def add_metrics(app: Flask, store: Store, registry: Registry) -> None:
    """Counts the application's requests, and adds the route."""
    collected = CollectorRegistry()
    rows = [_ROWS["lasagna_http_requests_total"], _ROWS["lasagna_http_request_duration_seconds"]]
    requests = Counter(rows[0].name, rows[0].help, rows[0].labels, registry=collected)
    durations = Histogram(rows[1].name, rows[1].help, rows[1].labels, registry=collected, buckets=_REQUEST_BOUNDS)
    ProcessCollector(registry=collected)
    collected.register(_FromRedis(store, registry))
    pages = Blueprint("metrics", __name__)

    @pages.before_app_request
    def start() -> None:
        g.metrics_started = time.perf_counter()

    @pages.after_app_request
    def count(response: Response) -> Response:
        rule = request.url_rule.rule if request.url_rule is not None else "unknown"  # paths have no bound
        method = request.method if request.method in ("GET", "POST", "HEAD", "OPTIONS") else "other"
        requests.labels(rule, method, response.status_code).inc()
        if "metrics_started" in g:
            durations.labels(rule).observe(time.perf_counter() - g.metrics_started)
        return response

    @pages.get("/metrics")
    def metrics() -> Response:
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(collected), content_type=kind)

    app.register_blueprint(pages)


class _FromRedis(Collector):
    """What the other processes did, read when it is asked for."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store, self._registry = store, registry

    def describe(self) -> Iterable[Metric]:
        return ()  # else prometheus_client would ask for everything at registration

    def collect(self) -> Iterator[Metric]:
        try:
            found = [*self._counted(), *self._now()]
            up = 1
        except redis.RedisError:
            found, up = [], 0
        yield _gauge("lasagna_redis_up", {(): up})
        yield from found
        yield from self._changes()

    def _counted(self) -> Iterator[Metric]:
        numbers = read_counters(self._store.redis)

        def counter(name: str, field: str, values: Sequence[str]) -> Metric:
            return _counter(name, {(value,): numbers.get(f"{field}:{value}", 0.0) for value in values})

        yield counter("lasagna_images_total", "images", ("computed", "reused"))
        yield counter("lasagna_stage_seconds_total", "seconds", STAGES)
        yield counter("lasagna_stage_images_total", "stage_images", STAGES)
        yield counter("lasagna_clicks_total", "clicks", ("answered", "refused"))
        yield counter("lasagna_corrections_total", "corrections", ("learnt", "removed", "aside"))
        yield _counter("lasagna_events_aside_total", {(): numbers.get("events:aside", 0.0)})
        yield counter("lasagna_predictions_delivered_total", "delivered", ("answered", "posted", "gone"))
        yield counter("lasagna_failures_total", "failures", REASONS)
        yield counter("lasagna_trainings_ended_total", "trainings", OUTCOMES)
        yield _counter("lasagna_tasks_lost_total", {(): numbers.get("lost", 0.0)})
        yield _counter("lasagna_postponements_total", {(): numbers.get("postponed", 0.0)})
        wait = _family(HistogramMetricFamily, "lasagna_queue_wait_seconds")
        for name in QUEUES:
            wait.add_metric((name,), *_buckets(numbers, "wait", name, WAIT_BOUNDS))
        yield wait
        images = _family(HistogramMetricFamily, "lasagna_batch_images")
        images.add_metric((), *_buckets(numbers, "batch", "", BATCH_BOUNDS))
        yield images

    def _now(self) -> Iterator[Metric]:
        connection = self._store.redis
        workers = living_workers(self._store)
        yield _gauge("lasagna_workers", {(q,): sum(q in w.queue_names() for w in workers) for q in QUEUES})
        queues = {name: queue(connection, name) for name in QUEUES}
        yield _gauge("lasagna_queue_jobs", {(name,): found.count for name, found in queues.items()})
        yield _gauge("lasagna_queue_oldest_job_seconds", {(name,): _waited(found) for name, found in queues.items()})
        yield _gauge("lasagna_tasks", {(state,): count for state, count in self._store.counts().items()})
        gpus = read_gpus(connection)
        yield _gauge("lasagna_gpu_memory_used_bytes", {(gpu.host, gpu.gpu): gpu.used for gpu in gpus})
        yield _gauge("lasagna_gpu_memory_total_bytes", {(gpu.host, gpu.gpu): gpu.total for gpu in gpus})
        states = [known["state"] for known in Trainings(self._store).overview().values()]
        yield _gauge("lasagna_trainings", {(state,): states.count(state) for state in ("queued", "running")})
        info = InfoMetricFamily("lasagna_model", _ROWS["lasagna_model_info"].help, labels=())
        if model := self._store.model():
            info.add_metric((), {"version": str(model["version"])})
        yield info

    def _changes(self) -> Iterator[Metric]:
        """Promotions and rollbacks by project, counted in the registry's files, which hold every change."""
        promotions: dict[tuple[str, ...], float] = {}
        rollbacks: dict[tuple[str, ...], float] = {}
        projects = self._registry.projects()
        several = {number for number, times in collections.Counter(map(number_of, projects)).items() if times > 1}
        for project in projects:
            name = project if number_of(project) in several else number_of(project)
            try:
                actions = [event.action for event in self._registry.aliases(project).history]
            except RegistryError:  # `lasagna models list` says what is wrong with it
                continue
            promotions[name,] = float(actions.count("promote"))
            rollbacks[name,] = float(actions.count("rollback"))
        yield _counter("lasagna_promotions_total", promotions)
        yield _counter("lasagna_rollbacks_total", rollbacks)


def _family(kind: Any, name: str) -> Any:
    row = _ROWS[name]
    return kind(row.name, row.help, labels=row.labels)


def _gauge(name: str, values: Mapping[tuple[str, ...], float]) -> Metric:
    return _filled(_family(GaugeMetricFamily, name), values)


def _counter(name: str, values: Mapping[tuple[str, ...], float]) -> Metric:
    return _filled(_family(CounterMetricFamily, name), values)


def _filled(family: Any, values: Mapping[tuple[str, ...], float]) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _buckets(
    numbers: Mapping[str, float], name: str, label: str, bounds: Sequence[float]
) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets, as Prometheus has them, and the sum."""
    total, buckets = 0.0, []
    for bound in (*bounds, "inf"):
        total += numbers.get(f"{name}:{label}:{bound}", 0.0)
        buckets.append(("+Inf" if bound == "inf" else str(bound), total))
    return buckets, numbers.get(f"{name}_sum:{label}", 0.0)


def _waited(found: Any) -> float:
    """Seconds since the job was queued that is next."""
    [first] = found.get_job_ids(0, 1) or [None]
    job = find_jobs(found.connection, [first])[0] if first else None
    if job is None or job.enqueued_at is None:
        return 0.0
    return max(0.0, (now() - job.enqueued_at).total_seconds())
