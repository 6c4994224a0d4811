"""GET /report/PROJECT: the page of edit effort."""

from functools import cache
from typing import Any

from flask import Blueprint, Response, g, request

from backend.instant.taught import TaughtNames
from backend.queue.connections import Connections
from backend.queue.provenance import Provenance
from backend.queue.store import Store
from backend.registry.known_projects import KnownProjects
from backend.registry.label_histories import LabelHistories
from backend.registry.registry import Registry
from backend.studio.project_id import number_of
from backend.studio.version_names import parse_version
from lasagna.labels.configuration import LabelConfig
from lasagna.settings import Settings, registry_folder


def effort_routes(settings: Settings, store: Store) -> Blueprint:
    """GET /report/PROJECT."""
    pages, connections = Blueprint("effort", __name__), Connections(settings, store)
    known = KnownProjects.from_settings(settings, store)

    @cache
    def reader() -> Any:
        from backend.effort.report import EffortReader  # OpenCV and SciPy, which nothing else here needs

        registry = Registry(registry_folder(settings))
        taught, provenance = TaughtNames(settings, registry), Provenance(store)

        def unknown(project: str, config: LabelConfig, version: str) -> list[str]:
            """By the question that the version's predictions answer, where it is known here."""
            question = provenance.question(parse_version(version).question)
            if question is None:
                return taught.unknown_of(project, config, version)
            return taught.unknown(project, version, question)

        return EffortReader(LabelHistories(registry.folder), unknown)

    @pages.get("/report/<project>")
    def report(project: str) -> Response:
        """Of a number, or of a uid where several Label Studios have the number; or `?server=`."""
        from backend.effort.page import render_effort

        uid = known.resolve(project, request.args.get("server", ""))
        found = reader().read(connections.of(uid)[0], int(number_of(uid)))
        g.said = f"{sum(version.tasks for version in found.versions)} tasks compared"
        return Response(render_effort(found), mimetype="text/html")

    return pages
