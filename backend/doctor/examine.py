"""`lasagna doctor`: looks at a set-up from end to end and names the first thing that is wrong, with the fix.

The checks run in the order in which a prediction needs what they look at, each with what it needs: one that cannot be
made because another is wrong is skipped and says so; one that is not known yet is made once more, a little later.
Those of the installation are in `backend.doctor.installation`,
those of a project in `backend.doctor.project`, those of one task on its real way (Label Studio, web process, queue,
worker and back) in `backend.doctor.task`.

What always holds: nothing is changed but that the task gets its prediction where it has none of the current version,
and that webhooks get one PROJECT_UPDATED; every wait has a limit; no secret is in what is said.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import redis

from backend.doctor.case import (
    Case,
    Check,
    Finding,
    NotAskedError,
    NotYetError,
    SkippedError,
    WrongError,
    cause,
    finding,
)
from backend.doctor.installation import INSTALLATION_CHECKS
from backend.doctor.project import PROJECT_CHECKS
from backend.doctor.task import TASK_CHECKS
from backend.studio.client import LabelStudioError
from lasagna.settings import hide_password

CHECKS: tuple[Check, ...] = (*INSTALLATION_CHECKS, *PROJECT_CHECKS, *TASK_CHECKS)


def examine(case: Case) -> Iterator[Finding]:
    """Makes the checks one after the other, and gives what each found as soon as it is known."""
    blocking: dict[str, Finding] = {}  # by check that was not ok: why those that need it are skipped
    for check in CHECKS:
        reason = next((blocking[need] for need in check.needs if need in blocking), None)
        found = _made(check, case) if reason is None else _without(check, reason)
        if found.state != "ok":
            blocking[check.name] = found
        yield found
        yield from case.notes
        case.notes.clear()


def _without(check: Check, reason: Finding) -> Finding:
    words = f"because {reason.check} is wrong" if reason.state == "wrong" else reason.words
    return Finding(check.name, "skipped", words, is_asked=reason.is_asked)


def first_wrong(findings: Sequence[Finding]) -> Finding | None:
    return next((found for found in findings if found.state == "wrong"), None)


def not_known(findings: Sequence[Finding]) -> list[Finding]:
    """What was asked for and could not be found out."""
    return [found for found in findings if found.state == "skipped" and found.is_asked]


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """JSON-ready: `ok` (all that was asked for was looked at, and nothing is wrong), `first_wrong` (a finding or null),
    `not_known` (names of checks), `checks` (all findings)."""
    wrong, unknown = first_wrong(findings), not_known(findings)
    return {
        "ok": wrong is None and not unknown,
        "first_wrong": asdict(wrong) if wrong else None,
        "not_known": [found.check for found in unknown],
        "checks": [asdict(found) for found in findings],
    }


def _made(check: Check, case: Case) -> Finding:
    try:
        try:
            words = check.run(case)
        except NotYetError:
            time.sleep(case.retry_seconds)
            words = check.run(case)
        return Finding(check.name, "ok", hide_password(words))
    except WrongError as error:
        return _as(check, error.finding)
    except SkippedError as error:
        return Finding(check.name, "skipped", str(error), is_asked=not isinstance(error, NotAskedError))
    except LabelStudioError as error:  # it went away, or refused what it should not
        trouble = "label-studio-gone" if error.status is None else "label-studio-failed"
        return _as(check, finding(trouble, error=cause(error)))
    except redis.RedisError as error:
        return _as(check, finding("redis-gone", error=f"Redis went away: {error}"))


def _as(check: Check, found: Finding) -> Finding:
    return Finding(check.name, "wrong", found.words, found.fix, found.trouble)
