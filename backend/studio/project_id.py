"""The two names of a project: Label Studio's own number ("12"), and the uid that it gives to backends ("12.1698").

The part behind the dot is when the project was made, in seconds: a number comes again where Label Studio's database was
made anew, a uid does not. Records of work are kept by uid, what people see and what is on disk goes by number.

`check_project_name` is the one door through which such names come in: what passed is safe in a file's name and in a key
of Redis.
"""

import re
import time
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


def project_uid(project: dict[str, Any]) -> ProjectUid:
    """The uid of a project as the API describes it."""
    created = datetime.fromisoformat(str(project["created_at"]).replace("Z", "+00:00"))
    return ProjectUid(f"{project['id']}.{int(created.timestamp())}")


def is_project_name(name: str) -> bool:
    """Whether Label Studio could call a project so. One that is made in the future is none: of two of a number the
    later counts, for ever."""
    if _NAME.fullmatch(name) is None:
        return False
    return int(name.partition(".")[2] or 0) <= time.time() + _CLOCKS_DIFFER


def check_project_name(name: str) -> str:
    """The name. Raises ConfigError for one that no project can have."""
    if not is_project_name(name):
        raise ConfigError(
            f"{name[:40]!r} is not what Label Studio calls a project, such as 12 or 12.1698765432; "
            "the request does not come from Label Studio"
        )
    return name
