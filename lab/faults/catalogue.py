"""What `lasagna bench faults` does to the running parts (`FAULTS`).

What always holds: a fault is over when its `strike` returns, but for the parts that it killed, which the caller starts
again; what it draws comes from the rig's own generator, so a seed gives the same faults.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import requests

from backend.queue.jobs import find_jobs, queue
from backend.queue.services import free_port, port_is_free
from lab.faults.rig import Fault, Rig, faketime
from lab.service.slow import slow_clients
from lasagna.errors import LasagnaError, ServiceError
from lasagna.formats.annotations import MOST_REGIONS
from lasagna.masks.conversions import mask_to_brush_rle
from lasagna.settings import cache_folder


def _kill(part: str) -> Callable[[Rig], None]:
    return lambda rig: rig.parts.kill(part)


def _one_worker(rig: Rig) -> str:
    return rig.rng.choice(["worker-a", "worker-b"])


def _kill_a_worker(rig: Rig) -> None:
    rig.parts.kill(_one_worker(rig))


def _hang_a_worker(rig: Rig) -> None:
    """SIGSTOP for longer than a silent worker counts as alive: another takes its job, and then it goes on."""
    process = rig.parts.services[_one_worker(rig)].process
    os.kill(process.pid, signal.SIGSTOP)
    rig.wait(rig.rng.uniform(22.0, 35.0))
    os.kill(process.pid, signal.SIGCONT)


def _run_a_job_twice(rig: Rig) -> bool:
    """The job that a worker has begun is put into the queue again, under its id: both workers finish it."""
    target = queue(rig.store.redis, "predict")
    end = time.monotonic() + 10
    while time.monotonic() < end:
        begun = target.started_job_registry.get_job_ids(cleanup=False)
        begun = [name.rsplit(":", 1)[0] for name in begun]
        if jobs := [job for job in find_jobs(rig.store.redis, begun) if job is not None]:
            for job in jobs:
                rig.store.redis.lpush(target.key, job.id)
            return True
        time.sleep(0.002)
    return False


def _evict(rig: Rig) -> bool:
    """For a moment Redis throws away what was used least, instead of refusing new work. False: nothing was."""
    before = int(rig.store.redis.info("stats")["evicted_keys"])
    used = int(rig.store.redis.info("memory")["used_memory"])
    rig.store.redis.config_set("maxmemory-policy", "allkeys-lru")
    rig.store.redis.config_set("maxmemory", max(1, int(0.9 * used)))
    rig.wait(rig.rng.uniform(0.5, 2.0))
    rig.store.redis.config_set("maxmemory", 0)
    rig.store.redis.config_set("maxmemory-policy", "noeviction")
    return int(rig.store.redis.info("stats")["evicted_keys"]) > before


def _fill_memory(rig: Rig) -> None:
    used = int(rig.store.redis.info("memory")["used_memory"])
    rig.store.redis.config_set("maxmemory", max(1, used // 2))
    rig.wait(rig.rng.uniform(2.0, 8.0))
    rig.store.redis.config_set("maxmemory", 0)


@contextmanager
def _full(disk: Path | None) -> Iterator[None]:
    assert disk is not None
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    yield
    filler.unlink()


def _fill_disk(rig: Rig) -> None:
    with _full(rig.disk):
        rig.wait(rig.rng.uniform(3.0, 8.0))


def _fill_registry(rig: Rig) -> None:
    """The web process and a worker start anew meanwhile: they remember nothing of what they have noted before."""
    with _full(rig.state):
        rig.parts.kill("serve")
        rig.parts.kill(_one_worker(rig))
        rig.wait(rig.rng.uniform(8.0, 15.0))


def _read_only(rig: Rig) -> None:
    """As `_fill_registry`, of a folder that nobody may write to, not even root. Raises ServiceError where the mount
    does not take it."""
    for way in ("ro", "rw"):
        done = subprocess.run(
            ["mount", "-o", f"remount,{way}", str(rig.state)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ServiceError(f"{rig.state} cannot be mounted anew ({way}): {done.stderr.strip()}")
        if way == "ro":
            rig.parts.kill("serve")
            rig.parts.kill(_one_worker(rig))
            rig.wait(rig.rng.uniform(8.0, 15.0))


def _two_web_processes(rig: Rig) -> None:
    """The project is connected to a second web process, which is asked for the same tasks while the first still is."""
    port = free_port()
    rig.parts.more["serve-2"] = {"LASAGNA_PORT": str(port)}
    rig.parts.start("serve-2")
    rig.until(lambda: not port_is_free(port), "the second web process")
    rig.api.connect_backend(rig.project, f"http://127.0.0.1:{port}")
    threads = [threading.Thread(target=_ask, args=(rig,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        rig.until(lambda thread=thread: not thread.is_alive(), "Label Studio's request")  # type: ignore[misc]
    rig.parts.services.pop("serve-2").stop()


def _ask(rig: Rig) -> None:
    with suppress(LasagnaError):
        rig.api.retrieve_predictions(rig.project)


def _through_gateway(mode: str) -> Callable[[Rig], None]:
    def strike(rig: Rig) -> None:
        rig.gateway.misbehave(mode, share=0.6, seed=rig.rng.randrange(1 << 30))
        rig.wait(rig.rng.uniform(5.0, 15.0))
        rig.gateway.misbehave("", share=0.0, seed=0)

    return strike


def _jump(rig: Rig) -> None:
    """The clock of one worker goes two hours forward, then as much back, then right again."""
    for offset in ("+7200", "-7200", "+0"):
        (rig.parts.folder / "clock").write_text(offset)
        rig.wait(3.0)


def _slow_clients(rig: Rig) -> None:
    """Twice as many half requests as the web process has threads."""
    with slow_clients(f"http://127.0.0.1:{rig.parts.web_port}", 60):
        rig.wait(rig.rng.uniform(5.0, 15.0))


def _poison_events(rig: Rig) -> None:
    """Webhook events that name no project, or are no events."""
    bodies: tuple[Any, ...] = (
        {"action": "ANNOTATION_CREATED", "project": {"id": "9" * 301}, "task": {"id": 1}},
        {"action": "ANNOTATION_CREATED", "project": {"id": "../../x"}, "annotation": [[[]]]},
        {"action": "START_TRAINING", "project": {"id": 999_999}},
        {"action": "A" * 5000},
        [],
    )
    for body in bodies:
        with suppress(requests.RequestException):
            requests.post(f"http://127.0.0.1:{rig.parts.web_port}/webhook", json=body, timeout=20)
    rig.wait(rig.rng.uniform(1.0, 5.0))


def _poison_annotations(rig: Rig) -> None:
    """Two further photos get annotations that nobody draws: more regions than are read, and a mask that is none. The
    workers read both, to learn from them."""
    size = {"original_width": 64, "original_height": 48, "image_rotation": 0}
    region = {"type": "brushlabels", "from_name": "brush", "to_name": "image", "origin": "manual", **size}
    value = {"format": "rle", "rle": mask_to_brush_rle(np.eye(48, 64, dtype=bool)), "brushlabels": ["cat"]}
    many = [{"id": f"r{number}", **region, "value": value} for number in range(MOST_REGIONS + 1)]
    none = [{"id": "r", **region, "value": {**value, "rle": [255] * 4096}}]
    for task, regions in zip(rig.more_tasks(2), (many, none), strict=True):
        with suppress(LasagnaError):
            rig.api.create_annotation(task, regions, lead_time=1.0)
    rig.wait(rig.rng.uniform(3.0, 8.0))


def _stop_in_an_outage(rig: Rig) -> None:
    """SIGTERM to a worker while Redis is gone. Raises ServiceError where it does not end."""
    rig.parts.kill("redis")
    process = rig.parts.services[_one_worker(rig)].process
    time.sleep(rig.rng.uniform(0.5, 6.0))
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired as error:
        raise ServiceError("a worker was told to end while Redis was gone, and did not within 60 s") from error


def _older_label_studio(rig: Rig) -> None:
    """Before the round: the tasks of the rounds before are looked at once more, because they go."""
    rig.look_again()
    rig.parts.new_label_studio(OLDER)


def _upgrade(rig: Rig) -> None:
    """In the middle of the job the older Label Studio ends, and the present one migrates its data and goes on."""
    rig.until(lambda: bool(rig.store.counts()["running"]), "the first batch", patience=60.0, pause=0.01)
    time.sleep(rig.rng.uniform(0.0, 1.0))
    rig.parts.upgrade_label_studio()


def _no_older(rig: Rig) -> str:
    program = cache_folder(rig.parts.settings) / OLDER / "venv" / "bin" / "label-studio"
    return "" if program.is_file() else f"there is no older Label Studio (make {OLDER})"


def _no_disk(rig: Rig) -> str:
    return "" if rig.disk is not None else "only root can mount the small disk"


def _no_state(rig: Rig) -> str:
    return "" if rig.state is not None else "only root can mount the small disk"


def _no_clock(rig: Rig) -> str:
    return "" if faketime() else "libfaketime is not installed (apt-get install faketime)"


OLDER = "older-label-studio"
"""Where in the cache folder an earlier release of Label Studio is."""
FAULTS = (
    Fault("worker", "kill -9 of a worker", _kill_a_worker),
    Fault("web", "kill -9 of the web process", _kill("serve")),
    Fault("redis", "kill -9 of Redis", _kill("redis")),
    Fault("label-studio", "kill -9 of Label Studio", _kill("label-studio")),
    Fault("memory", "Redis out of memory for seconds", _fill_memory),
    Fault("eviction", "Redis evicts for seconds", _evict),
    Fault("disk", "Redis's disk full for seconds", _fill_disk, _no_disk),
    Fault("registry", "the disk of registry, state and cache full, while processes start", _fill_registry, _no_state),
    Fault("read-only", "registry, state and cache read-only, while processes start", _read_only, _no_state),
    Fault("two-web", "a second web process is asked for the same tasks", _two_web_processes),
    Fault("500", "Label Studio answers 500 to six requests of ten", _through_gateway("500")),
    Fault("502", "it does what it is asked, and the gateway answers 502", _through_gateway("502")),
    Fault("slow", "answers take up to 20 s, the limit is 15 s", _through_gateway("slow")),
    Fault("half", "answers break off halfway", _through_gateway("half")),
    Fault("hang", "a worker stands still for half a minute, then goes on", _hang_a_worker),
    Fault("two", "two workers run the same job at the same time", _run_a_job_twice, waits=True),
    Fault("poison", "an image kills every worker that decodes it", lambda rig: None),
    Fault("slow-clients", "60 clients send half a request and wait", _slow_clients),
    Fault("events", "webhook events that name no project, or are none", _poison_events),
    Fault("annotations", "annotations that nobody draws, which are learnt from", _poison_annotations),
    Fault("stop", "SIGTERM to a worker while Redis is gone", _stop_in_an_outage),
    Fault(
        "upgrade",
        "Label Studio is upgraded, and migrates its data",
        _upgrade,
        _no_older,
        _older_label_studio,
        waits=True,
    ),  # fmt: skip,
    Fault("clock", "a worker's clock jumps two hours forward and back", _jump, _no_clock),
)
