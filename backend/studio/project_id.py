"""The two names of a project: Label Studio's own number ("12"), and the uid that it gives to backends ("12.1698").

The part behind the dot is when the project was made, in seconds: a number comes again where Label Studio's database was
made anew, a uid does not. Records of work are kept by uid, what people see and what is on disk goes by number.
"""

from datetime import datetime
from typing import Any, NewType

ProjectNumber = NewType("ProjectNumber", str)
ProjectUid = NewType("ProjectUid", str)


def number_of(project: str) -> ProjectNumber:
    """The number of a project, of that or of its uid; "" of ""."""
    return ProjectNumber(project.partition(".")[0])


def project_uid(project: dict[str, Any]) -> ProjectUid:
    """The uid of a project as the API describes it."""
    created = datetime.fromisoformat(str(project["created_at"]).replace("Z", "+00:00"))
    return ProjectUid(f"{project['id']}.{int(created.timestamp())}")
