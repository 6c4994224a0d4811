"""What a prediction was made of, as far as it belongs to one task: `backend.queue.provenance` keeps it.

What always holds: equal data and images have equal digests, on whatever machine.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Made:
    """What the prediction was made of that a task has got last.

    Attributes:
        version: That it carries.
        data: Digest of what was read of the task's data (`data_digest`); "" where the task is known to show another
            image by now.
        images: Digests of the images' bytes, those that came.
    """

    version: str
    data: str
    images: Sequence[str] = ()


def data_digest(data: str) -> str:
    """Of `Work.data`."""
    return hashlib.sha256(data.encode("utf-8", "surrogatepass")).hexdigest()[:16]
