"""Whether a project learns from corrections at once."""

from backend.queue.store import Project
from lasagna.settings import Settings


def learns_at_once(settings: Settings, project: Project) -> bool:
    """The backend's extra parameter "instant" of the project, else the setting `instant`."""
    return settings.instant if project.instant is None else project.instant
