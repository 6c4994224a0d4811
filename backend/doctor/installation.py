"""The checks of the installation: Redis, worker, Label Studio, token, clock."""

import time
from email.utils import parsedate_to_datetime

import redis
from rq import Worker

from backend.doctor.case import Case, Check, SkippedError, cause
from backend.doctor.client import Inspection
from backend.queue.connections import Connections
from backend.queue.fitness import unfitness
from backend.queue.living_workers import in_words, predicting_workers
from backend.queue.own_redis import ensure_redis
from backend.queue.store import Store, connect
from backend.registry.known_projects import KnownProjects
from backend.studio.client import LabelStudio, LabelStudioError, token_claims
from lasagna.errors import ConfigError, LasagnaError, ServiceError
from lasagna.settings import hide_password

_CLOCK_SECONDS = 60
_SECONDS = 5.0
"""Limit of a wait for an address that should answer at once."""


def _redis(case: Case) -> str:
    try:
        case.redis_url = ensure_redis(case.settings)
        store = Store(connect(case.redis_url, timeout=10.0))
        store.redis.ping()
    except (LasagnaError, redis.RedisError) as error:
        case.wrong("redis-gone", error=cause(error))
    case._store = store
    try:
        why_not = unfitness(store.redis)
    except redis.RedisError as error:
        case.wrong("redis-gone", error=cause(error))
    if why_not:
        case.wrong("redis-unfit", reasons="; ".join(why_not))
    own = "" if case.settings.redis_url else ", our own on this machine, since LASAGNA_REDIS_URL is not set"
    return f"{case.redis_url} answers{own}"


def _worker(case: Case) -> str:
    workers = predicting_workers(case.store)
    if not workers:
        case.wrong("worker-none", others=silent_workers(case.store))
    versions = sorted({worker.version for worker in workers})
    if len(versions) > 1:
        case.wrong("worker-versions", versions=", ".join(versions))
    return in_words(workers, case.store)


def silent_workers(store: Store) -> str:
    """Which workers there are that do not predict, in words."""
    count = Worker.count(connection=store.redis)
    return f"found: {count}, only for training or silent for half a minute" if count else "and no other"


def _label_studio(case: Case) -> str:
    """Finds its address and token as a worker does, and looks whether it is there."""
    settings, number = case.settings, case.project_number
    configured = settings.label_studio_url
    if not case.has_redis and not configured:
        raise SkippedError("because redis is wrong, which knows the address of Label Studio (or give --url)")
    uids = case.store.projects() if case.has_redis else []
    of_project = KnownProjects.from_settings(settings, case.store).of(str(number)) if number and case.has_redis else []
    if len(of_project) > 1:
        both = ", ".join(hide_password(known.server) for known in of_project)
        raise SkippedError(f"because {len(of_project)} Label Studios have a project {number}: {both}; --url says which")
    case.uid = next(iter([*(known.uid for known in of_project), *uids]), "")
    try:
        if case.has_redis:
            found, _ = Connections(settings, case.store).of(case.uid)
        else:
            found = LabelStudio(configured, settings.label_studio_token)
    except ServiceError:
        case.wrong("address-unknown", which=f" for project {number}" if number else "")
    except ConfigError as error:
        case.wrong("label-studio-gone", error=str(error))
    case._label_studio = Inspection(found.url, found.token, timeout=settings.image_timeout)
    if found.token == settings.label_studio_token:
        is_given = settings.origins["label_studio_token"] == "command line"
        case.whose_token = "given as --token" if is_given else "in LASAGNA_LABEL_STUDIO_TOKEN"
    else:
        case.whose_token = "that Label Studio sent with /setup"
    try:
        version = _version(found.url, case)
    except LabelStudioError as error:
        if configured:
            case.wrong("label-studio-gone", error=cause(error))
        case.wrong("host-name", hostname=found.url, error=cause(error))
    return f"{found.url} is Label Studio {version}" + ("" if configured else " (its address came with /setup)")


def _version(url: str, case: Case) -> str:
    """The version of the Label Studio at an address; notes what time it is there."""
    with LabelStudio(url, "", timeout=_SECONDS).get_stream("/api/version") as response:
        status, kind = response.status_code, response.headers.get("Content-Type", "no content")
        if "Date" in response.headers:
            case.ahead = case.clock() - parsedate_to_datetime(response.headers["Date"]).timestamp()
        if 300 <= status < 400:
            case.wrong("label-studio-other", url=url, found=f"it redirects to {response.headers.get('Location')}")
        try:
            return str(response.json()["release"])
        except (ValueError, KeyError, TypeError):
            case.wrong("label-studio-other", url=url, found=f"it answers {status}, {kind}, to /api/version")


def _token(case: Case) -> str:
    label_studio, whose = case.label_studio, case.whose_token
    token, claims = label_studio.token, token_claims(label_studio.token) or {}
    if not token:
        case.wrong("token-missing")
    if token.startswith("eyJ") and token.count(".") < 2:
        case.wrong("token-cut", whose=whose)
    kind = {"personal": "personal access token", "access": "access token", "legacy": "legacy token"}[label_studio.kind]
    ends = claims.get("exp")
    if isinstance(ends, int | float) and ends < case.clock() - (case.ahead or 0):
        date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ends))
        case.wrong("token-expired", kind=kind, whose=whose, date=date)
    try:
        case.who = label_studio.check()
    except LabelStudioError as error:
        if error.status not in (401, 403):
            raise
        if label_studio.kind == "legacy" and "disabled" in error.detail:
            case.wrong("token-legacy-off", whose=whose)
        case.wrong("token-refused", url=label_studio.url, kind=kind, whose=whose, detail=error.detail)
    if label_studio.kind == "access":
        case.wrong("token-access", whose=whose)
    return f"{case.who}, {whose}"


def _clock(case: Case) -> str:
    """Compares clocks: by the Date of an answer, else by the time at which an access token was made, and by Redis."""
    differences: dict[str, float] = {}
    if case.ahead is not None:
        differences["Label Studio"] = case.ahead
    elif case.label_studio.kind == "personal":
        claims = token_claims(case.label_studio.authorization()["Authorization"].removeprefix("Bearer ")) or {}
        differences["Label Studio"] = case.clock() - float(claims.get("iat") or case.clock())
    if case.has_redis:
        differences["Redis"] = case.clock() - case.store.now()
    for name, seconds in differences.items():
        if abs(seconds) > _CLOCK_SECONDS:
            direction = "ahead of" if seconds > 0 else "behind"
            case.wrong("clock", seconds=round(abs(seconds)), direction=direction, other=name)
    return f"as in {' and '.join(differences)}, within {_CLOCK_SECONDS} s"


INSTALLATION_CHECKS: tuple[Check, ...] = (
    Check("redis", (), _redis),
    Check("worker", ("redis",), _worker),
    Check("label-studio", (), _label_studio),
    Check("token", ("label-studio",), _token),
    Check("clock", ("token",), _clock),
)
