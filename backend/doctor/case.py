"""`lasagna doctor`: looks at a set-up from end to end and names the first thing that is wrong, with the fix.

The checks run in the order in which a prediction needs what they look at, each with what it needs: one that cannot be
made because another is wrong is skipped and says so. Here are those of the installation; those of a project are in
`backend.doctor.project`, those of one task on its real way (Label Studio, web process, queue, worker and back) in
`backend.doctor.task`. All texts are in `backend.doctor.troubles`.

What always holds: nothing is changed but that the task gets its prediction where it has none of the current version,
and that webhooks get one PROJECT_UPDATED; every wait has a limit; no secret is in what is said.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NoReturn

import redis
from rq import Worker

from backend.doctor.client import Inspection
from backend.doctor.troubles import TROUBLES
from backend.queue.connections import Connections
from backend.queue.living_workers import predicting_workers
from backend.queue.own_redis import ensure_redis
from backend.queue.store import Store, connect
from backend.studio.client import LabelStudio, LabelStudioError, token_claims
from lasagna.errors import ConfigError, LasagnaError, ServiceError
from lasagna.labels.configuration import LabelConfig
from lasagna.settings import Settings, hide_password

State = Literal["ok", "wrong", "note", "skipped"]

_CLOCK_SECONDS = 60
_SECONDS = 5.0
"""Limit of a wait for an address that should answer at once."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: Its name.
        state: "note" is a thing that works and is worth knowing.
        words: What was found, or why it was skipped.
        fix: What to do; "" unless wrong or a note.
        trouble: Its key in `TROUBLES`; "" unless wrong or a note.
    """

    check: str
    state: State
    words: str
    fix: str = ""
    trouble: str = ""


class WrongError(LasagnaError):
    """A check found a trouble."""

    def __init__(self, trouble: str, **values: Any) -> None:
        self.finding = finding(trouble, **values)
        super().__init__(self.finding.words)


class SkippedError(LasagnaError):
    """A check cannot be made, for a reason that is no trouble."""


@dataclass
class Case:
    """What is looked at, and what the checks found out for those after them.

    Attributes:
        settings: Those of `lasagna serve` and `lasagna worker`, with what was said on the command line.
        project_number: The project; None: only the installation is looked at.
        task_number: The task; None: the first one.
        backend_url: Where `lasagna serve` is for Label Studio; used where no backend is connected.
        clock: The time of this machine, in seconds since 1970.
        event_seconds: Longest wait for an event of the webhook: Label Studio has waited for the answer to it already.
    """

    settings: Settings
    project_number: int | None = None
    task_number: int | None = None
    backend_url: str = ""
    clock: Callable[[], float] = time.time
    event_seconds: float = 5.0
    notes: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.redis_url = ""
        self._store: Store | None = None
        self.uid = ""
        self._label_studio: Inspection | None = None
        self.whose_token = ""
        self.who = ""
        self.ahead: float | None = None  # seconds by which our clock is ahead of Label Studio's
        self.project: dict[str, Any] = {}
        self.plan: LabelConfig | None = None
        self.connected: list[dict[str, Any]] = []  # backends, that which is asked first
        self.task: Any = None
        self.image_size = (0, 0)
        self.version = ""  # that Label Studio was told
        if not self.backend_url:
            host = self.settings.host
            host = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
            self.backend_url = f"http://{host}:{self.settings.port}"

    @property
    def has_redis(self) -> bool:
        return self._store is not None

    @property
    def store(self) -> Store:
        assert self._store is not None  # the check "redis" is needed by every user
        return self._store

    @property
    def label_studio(self) -> Inspection:
        assert self._label_studio is not None  # set by the check "label-studio"
        return self._label_studio

    @property
    def backend(self) -> dict[str, Any]:
        return self.connected[0]

    @property
    def number(self) -> int:
        assert self.project_number is not None  # the check "project" skips without one
        return self.project_number

    def wrong(self, trouble: str, **values: Any) -> NoReturn:
        raise WrongError(trouble, **values)

    def note(self, trouble: str, **values: Any) -> None:
        self.notes.append(finding(trouble, **values))


@dataclass(frozen=True)
class Check:
    """One check: `run` returns words, or raises `WrongError` or `SkippedError`; `needs` are other checks by name."""

    name: str
    needs: tuple[str, ...]
    run: Callable[[Case], str]


def finding(trouble: str, **values: Any) -> Finding:
    """A trouble with its texts filled in. Passwords in addresses are hidden."""
    known = TROUBLES[trouble]
    shown = {name: hide_password(value) if isinstance(value, str) else value for name, value in values.items()}
    words, fix = (" ".join(text.format(**shown).split()) for text in (known.message, known.fix))
    return Finding(known.check, "note" if known.is_note else "wrong", words, fix, trouble)


def cause(error: Exception) -> str:
    """What was found, without what our errors say after a semicolon: what to do, for which there is the fix."""
    return str(error).partition("; ")[0]


def examine(case: Case) -> Iterator[Finding]:
    """Makes the checks one after the other, and gives what each found as soon as it is known."""
    from backend.doctor.project import PROJECT_CHECKS
    from backend.doctor.task import TASK_CHECKS

    blocking: dict[str, str] = {}  # by check that was not ok: why those that need it are skipped
    for check in (*CHECKS, *PROJECT_CHECKS, *TASK_CHECKS):
        reason = next((blocking[need] for need in check.needs if need in blocking), None)
        found = Finding(check.name, "skipped", reason) if reason else _made(check, case)
        if found.state != "ok":
            blocking[check.name] = f"because {check.name} is wrong" if found.state == "wrong" else found.words
        yield found
        yield from case.notes
        case.notes.clear()


def first_wrong(findings: Sequence[Finding]) -> Finding | None:
    return next((found for found in findings if found.state == "wrong"), None)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """JSON-ready: `ok`, `first_wrong` (a finding or null), `checks` (all findings)."""
    wrong = first_wrong(findings)
    return {
        "ok": wrong is None,
        "first_wrong": asdict(wrong) if wrong else None,
        "checks": [asdict(found) for found in findings],
    }


def _made(check: Check, case: Case) -> Finding:
    try:
        return Finding(check.name, "ok", hide_password(check.run(case)))
    except WrongError as error:
        return _as(check, error.finding)
    except SkippedError as error:
        return Finding(check.name, "skipped", str(error))
    except LabelStudioError as error:  # it went away, or refused what it should not
        trouble = "label-studio-gone" if error.status is None else "label-studio-failed"
        return _as(check, finding(trouble, error=cause(error)))
    except redis.RedisError as error:
        return _as(check, finding("redis-gone", error=f"Redis went away: {error}"))


def _as(check: Check, found: Finding) -> Finding:
    return Finding(check.name, "wrong", found.words, found.fix, found.trouble)


# --- the installation -------------------------------------------------------------------------------------------------


def _redis(case: Case) -> str:
    try:
        case.redis_url = ensure_redis(case.settings)
        store = Store(connect(case.redis_url, timeout=10.0))
        store.redis.ping()
    except (LasagnaError, redis.RedisError) as error:
        case.wrong("redis-gone", error=cause(error))
    case._store = store
    own = "" if case.settings.redis_url else ", our own on this machine, since LASAGNA_REDIS_URL is not set"
    return f"{case.redis_url} answers{own}"


def _worker(case: Case) -> str:
    workers = predicting_workers(case.store)
    if not workers:
        case.wrong("worker-none", others=silent_workers(case.store))
    versions = sorted({worker.version for worker in workers})
    if len(versions) > 1:
        case.wrong("worker-versions", versions=", ".join(versions))
    return f"{len(workers)} with the model {versions[0]}"


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
    of_project = [uid for uid in uids if number is not None and uid.partition(".")[0] == str(number)]
    case.uid = next(iter([*of_project, *uids]), "")
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


CHECKS: tuple[Check, ...] = (
    Check("redis", (), _redis),
    Check("worker", ("redis",), _worker),
    Check("label-studio", (), _label_studio),
    Check("token", ("label-studio",), _token),
    Check("clock", ("token",), _clock),
)
