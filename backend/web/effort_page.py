"""GET /report/PROJECT: the page of edit effort."""

from functools import cache
from typing import Any

from flask import Blueprint, Response, g

from backend.instant.taught import TaughtNames
from backend.queue.connections import Connections
from backend.queue.provenance import Provenance
from backend.queue.store import Store
from backend.registry.label_histories import LabelHistories
from backend.registry.registry import Registry
from backend.studio.version_names import parse_version
from lasagna.labels.configuration import LabelConfig
from lasagna.settings import Settings, registry_folder


def effort_routes(settings: Settings, store: Store) -> Blueprint:
    """GET /report/PROJECT."""
    pages, connections = Blueprint("effort", __name__), Connections(settings, store)

    @cache
    def reader() -> Any:
        from backend.effort.report import EffortReader  # OpenCV and SciPy, which nothing else here needs

        registry = Registry(registry_folder(settings))
        taught, provenance = TaughtNames(settings, registry), Provenance(store)

        def unknown(project: int, config: LabelConfig, version: str) -> list[str]:
            """By the question that the version's predictions answer, where it is known here."""
            question = provenance.question(parse_version(version).question)
            if question is None:
                return taught.unknown_of(project, config, version)
            return taught.unknown(str(project), version, question)

        return EffortReader(LabelHistories(registry.folder), unknown)

    @pages.get("/report/<int:project>")
    def report(project: int) -> Response:
        from backend.effort.page import render_effort

        found = reader().read(connections.of(store.uid(str(project)))[0], project)
        g.said = f"{sum(version.tasks for version in found.versions)} tasks compared"
        return Response(render_effort(found), mimetype="text/html")

    return pages
