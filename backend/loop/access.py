"""The way from a project to its snapshots. No torch: the process that decides when to train looks without it."""

from dataclasses import dataclass
from pathlib import Path

from backend.loop.snapshot import Snapshots
from backend.registry.label_histories import LabelHistories
from backend.registry.records import project_key, project_number
from backend.studio.client import LabelStudio
from backend.studio.images import ImageLimits
from lasagna.settings import Settings


@dataclass(frozen=True)
class StudioAccess:
    """The way to a project in Label Studio.

    Attributes:
        known_as: As for `fetch_image`.
        learns_at_once: Whether an instant head stands beside the model that serves the project.
    """

    label_studio: LabelStudio
    known_as: str = ""
    learns_at_once: bool = False


def snapshots_of(settings: Settings, registry: Path, project: str, access: StudioAccess) -> Snapshots:
    """The snapshots of a project."""
    return Snapshots(
        registry / "snapshots" / project_key(project),
        access.label_studio,
        int(project_number(project)),
        ImageLimits.from_settings(settings),
        {"max_pixels": settings.max_image_pixels, "max_memory": settings.max_image_memory},
        access.known_as,
        LabelHistories(registry).of(project),
    )
