"""The two names of a project: Label Studio's own number ("12"), and the uid that it gives to backends ("12.1698").

The part behind the dot is when the project was made, in seconds: a number comes again in another Label Studio, and
where a database was made anew; a uid does not. All that is kept of a project, in Redis and on disk, is kept by its uid
(by its number only where nobody has told the uid yet); people read and type the number, which
`backend.registry.known_projects` turns into a uid.

`check_project_name` is the one door through which such names come in: what passed is safe in a file's name and in a key
of Redis.
"""

import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NewType

from lasagna.errors import ConfigError

ProjectNumber = NewType("ProjectNumber", str)
ProjectUid = NewType("ProjectUid", str)

_NAME = re.compile(r"[1-9][0-9]{0,17}(\.[0-9]{1,18})?")
"""At most 18 digits, then the second of the creation."""
_CLOCKS_DIFFER = 2 * 24 * 3600.0
"""Seconds."""


def number_of(project: str) -> ProjectNumber:
    """The number of a project, of that or of its uid; "" of ""."""
    return ProjectNumber(project.partition(".")[0])


def project_uid(project: Mapping[str, Any]) -> ProjectUid:
    """The uid of a project as the API describes it."""
    created = datetime.fromisoformat(str(project["created_at"]).replace("Z", "+00:00"))
    return ProjectUid(f"{project['id']}.{int(created.timestamp())}")


def uid_of_event(project: Any) -> str:
    """The uid of a project as a webhook describes it; its number where it does not say when the project was made, ""
    where it is no project."""
    if not isinstance(project, Mapping):
        return ""
    number = str(project.get("id", ""))
    if not is_project_name(number):
        return ""
    try:
        uid = project_uid(project)
    except (KeyError, ValueError, OverflowError):
        return number
    return uid if is_project_name(uid) else number


def made_at(project: str) -> int:
    """When a project was made, of its uid, in seconds since 1970; 0 of a number."""
    return int(project.partition(".")[2] or 0)


def is_of(name: str, project: str) -> bool:
    """Whether a record by a name is of a project; where one of both has the number alone, the number decides."""
    is_whole = made_at(name) and made_at(project)
    return name == project if is_whole else number_of(name) == number_of(project)


def is_project_name(name: str) -> bool:
    """Whether Label Studio could call a project so. One that is made in the future is none: of two of a number the
    later counts, for ever."""
    if _NAME.fullmatch(name) is None:
        return False
    return made_at(name) <= time.time() + _CLOCKS_DIFFER


def check_project_name(name: str) -> str:
    """The name. Raises ConfigError for one that no project can have."""
    if not is_project_name(name):
        raise ConfigError(
            f"{name[:40]!r} is not what Label Studio calls a project, such as 12 or 12.1698765432; "
            "the request does not come from Label Studio"
        )
    return name
