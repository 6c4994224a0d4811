"""GET /report/PROJECT: the page of edit effort."""

from functools import cache
from typing import Any

from flask import Blueprint, Response, g

from backend.queue.connections import Connections
from backend.queue.store import Store
from backend.registry.label_histories import LabelHistories
from lasagna.settings import Settings, registry_folder


def effort_routes(settings: Settings, store: Store) -> Blueprint:
    """GET /report/PROJECT."""
    pages, connections = Blueprint("effort", __name__), Connections(settings, store)

    @cache
    def reader() -> Any:
        from backend.effort.report import EffortReader  # OpenCV and SciPy, which nothing else here needs

        return EffortReader(LabelHistories(registry_folder(settings)))

    @pages.get("/report/<int:project>")
    def report(project: int) -> Response:
        from backend.effort.page import render_effort

        found = reader().read(connections.of(store.uid(str(project)))[0], project)
        g.said = f"{sum(version.tasks for version in found.versions)} tasks compared"
        return Response(render_effort(found), mimetype="text/html")

    return pages
