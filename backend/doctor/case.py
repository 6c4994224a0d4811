"""What `lasagna doctor` looks at, the form of a check, and what one finds (its texts: `backend.doctor.troubles`).

What always holds: no secret is in what is said.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from backend.doctor.client import Inspection
from backend.doctor.troubles import TROUBLES
from backend.queue.store import Store
from lasagna.errors import LasagnaError
from lasagna.labels.configuration import LabelConfig
from lasagna.labels.parts import ImageConfig
from lasagna.settings import Settings, hide_password

State = Literal["ok", "wrong", "note", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: Its name.
        state: "note" is a thing that works and is worth knowing.
        words: What was found, or why it was skipped.
        fix: What to do; "" unless wrong or a note.
        trouble: Its key in `TROUBLES`; "" unless wrong or a note.
        is_asked: Whether it was asked for: without a project, nothing of one is.
    """

    check: str
    state: State
    words: str
    fix: str = ""
    trouble: str = ""
    is_asked: bool = True


class WrongError(LasagnaError):
    """A check found a trouble."""

    def __init__(self, trouble: str, **values: Any) -> None:
        self.finding = finding(trouble, **values)
        super().__init__(self.finding.words)


class SkippedError(LasagnaError):
    """A check cannot be made, for a reason that is no trouble."""


class NotAskedError(SkippedError):
    """Nobody asked for it."""


class NotYetError(SkippedError):
    """It cannot be known at this moment, and can a little later: the check is made once more by itself."""


@dataclass
class Case:
    """What is looked at, and what the checks found out for those after them.

    Attributes:
        settings: Those of `lasagna serve` and `lasagna worker`, with what was said on the command line.
        project_number: The project; None: only the installation is looked at.
        task_number: The task; None: the first one.
        backend_url: Where `lasagna serve` is for Label Studio; used where no backend is connected.
        clock: The time of this machine, in seconds since 1970.
        retry_seconds: Wait before a check is made once more that could not be known.
        event_seconds: Longest wait for an event of the webhook: Label Studio has waited for the answer to it already.
    """

    settings: Settings
    project_number: int | None = None
    task_number: int | None = None
    backend_url: str = ""
    clock: Callable[[], float] = time.time
    retry_seconds: float = 10.5
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
        self.shown: list[tuple[ImageConfig, tuple[int, int] | None]] = []  # images of the task, with their sizes
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
