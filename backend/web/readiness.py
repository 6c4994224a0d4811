"""Whether predictions can be made now: what `/ready` answers, and what `lasagna doctor` looks at first.

What always holds: an answer takes no longer than a few seconds whatever hangs (each check has a limit, and they wait
side by side), nothing is changed but a key that shows that Redis can write, and no secret is in the words.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import redis

from backend.queue.fitness import unfitness
from backend.queue.living_workers import in_words, predicting_workers
from backend.queue.store import Store
from backend.studio.client import LabelStudio
from lasagna.errors import LasagnaError
from lasagna.settings import Settings, hide_password

_SECONDS = 2.0
"""Limit of each wait for a server, in seconds."""
_MAX_ADDRESSES = 4
"""Label Studios that are asked, where projects of several are known."""


@dataclass(frozen=True)
class ReadinessCheck:
    """Whether one thing is as it must be, in words."""

    ok: bool
    words: str


def readiness(settings: Settings, store: Store) -> dict[str, ReadinessCheck]:
    """The checks "redis", "worker" and "label_studio". Ready is when all of them are ok."""
    try:
        store.redis.ping()
        why_not = unfitness(store.redis)
        checks = {
            "redis": ReadinessCheck(not why_not, f"answers, but {'; '.join(why_not)}" if why_not else "answers"),
            "worker": _workers(store),
        }
        addresses = _addresses(settings, store)
    except redis.RedisError as error:
        checks = {
            "redis": ReadinessCheck(False, f"does not answer: {error}"),
            "worker": ReadinessCheck(False, "not known without Redis"),
        }
        addresses = [settings.label_studio_url] if settings.label_studio_url else []
    return {**checks, "label_studio": _label_studios(addresses)}


def _label_studios(addresses: Sequence[str]) -> ReadinessCheck:
    if not addresses:
        return ReadinessCheck(True, "not known yet: its address comes with /setup")
    pool = ThreadPoolExecutor(max_workers=len(addresses), thread_name_prefix="ready")
    futures = {pool.submit(_why_not, url): url for url in addresses}
    done, late = wait(futures, timeout=2 * _SECONDS)
    pool.shutdown(wait=False)  # looking up a name has no limit of its own
    failed = [reason for future in done if (reason := future.result())]
    failed += [f"Label Studio at {hide_password(futures[future])} does not answer" for future in late]
    if failed:
        return ReadinessCheck(False, "; ".join(sorted(failed)))
    return ReadinessCheck(True, "answers: " + ", ".join(map(hide_password, addresses)))


def _workers(store: Store) -> ReadinessCheck:
    workers = predicting_workers(store)
    if not workers:
        return ReadinessCheck(
            False, "none has a model loaded: start `lasagna worker`, or wait until it says `waiting for jobs`"
        )
    return ReadinessCheck(True, in_words(workers, store))


def _addresses(settings: Settings, store: Store) -> list[str]:
    """Where Label Studio is: as configured, else as the projects' `/setup` said, those of the latest projects first."""
    if settings.label_studio_url:
        return [settings.label_studio_url]
    told = (store.project(uid).url for uid in store.projects())
    return list(dict.fromkeys(url for url in told if url))[:_MAX_ADDRESSES]


def _why_not(url: str) -> str:
    """Why Label Studio does not answer there; "" where it does. No token is sent."""
    try:
        with LabelStudio(url, "", timeout=_SECONDS).get_stream("/health") as response:
            status = response.status_code
    except LasagnaError as error:
        return hide_password(str(error))
    return "" if status == 200 else f"Label Studio at {hide_password(url)} answers {status} to /health"
