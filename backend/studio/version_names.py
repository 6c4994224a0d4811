"""The names of what predictions were made by: "nano-ec805b63+h12~3f2a9c" is version nano-ec805b63 with its twelfth
instant head, asked question 3f2a9c (`lasagna.labels.question`). Head and question may be missing.
"""

import re
from typing import NamedTuple

from lasagna.labels.question import SEPARATOR

_NAME = re.compile(rf"(?P<base>.+?)(?:\+h(?P<head>\d+))?(?:{SEPARATOR}(?P<question>[0-9a-f]{{6}}))?")


class VersionName(NamedTuple):
    """A version name taken apart.

    Attributes:
        base: The version alone, as the registry knows it.
        head: Number of its instant head, or None.
        question: Digest of the question that is answered, or "".
    """

    base: str
    head: int | None
    question: str


def parse_version(name: str) -> VersionName:
    """Takes a version name apart; one of somebody else's is all base."""
    match = _NAME.fullmatch(name)
    if match is None:
        return VersionName(name, None, "")
    return VersionName(match["base"], int(match["head"]) if match["head"] else None, match["question"] or "")


def base_version(name: str) -> str:
    """The version without head and question: "nano-ec805b63" of "nano-ec805b63+h12~3f2a9c"."""
    return parse_version(name).base


def without_question(name: str) -> str:
    """The version with its head, which answers whatever is asked: "nano-ec805b63+h12"."""
    version = parse_version(name)
    return version.base if version.head is None else f"{version.base}+h{version.head}"


def version_family(name: str) -> str:
    """What versions have in common that differ in question, and in the number of their head: "nano-ec805b63+h"."""
    version = parse_version(name)
    return version.base if version.head is None else f"{version.base}+h"
