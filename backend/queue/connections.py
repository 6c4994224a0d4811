"""Clients of the Label Studios that projects belong to.

What always holds: a token is sent to the address that it was given for, and to no other.
"""

from backend.queue.store import Project, Store
from backend.studio.client import LabelStudio
from lasagna.errors import ServiceError
from lasagna.settings import Settings


class Connections:
    """The Label Studio of each project: one client per address and token, so that access tokens are shared.

    The configured token is sent to the configured address only. Without a configured address, a project's own token
    (from its `/setup`) goes to the address that came with it.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._clients: dict[tuple[str, str], LabelStudio] = {}

    def of(self, project: str) -> tuple[LabelStudio, Project]:
        """The client of a project and what its `/setup` said.

        Raises:
            ServiceError: Nobody said where its Label Studio is.
        """
        known = self._store.project(project)
        url, token = self._settings.label_studio_url, self._settings.label_studio_token
        if not url:
            url, token = known.url, known.given_token or known.token
        if not url:
            raise ServiceError(
                f"the address of Label Studio for project {project} is not known: Label Studio sends it with /setup "
                "(Settings > Model > Validate and save), or set LASAGNA_LABEL_STUDIO_URL"
            )
        token = token or known.token
        if (url, token) not in self._clients:
            self._clients[url, token] = LabelStudio(url, token, timeout=self._settings.image_timeout)
        return self._clients[url, token], known
