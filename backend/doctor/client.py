"""What `lasagna doctor` asks Label Studio besides what the backend itself does.

What always holds: nothing of the project is changed, except by `retrieve`. `refuses_backend` and `refuses_webhook` send
a form that is bound to be refused for another reason too, so that Label Studio checks the address and creates nothing;
`touch` changes no field.
"""

from typing import Any

import requests

from backend.studio.client import LabelStudio, LabelStudioError, StudioTask, error_detail

_ACTION = "LASAGNA_DOCTOR"
"""No action of Label Studio, so that a webhook with it is not created."""


class Inspection(LabelStudio):
    """The client of Label Studio with what the checks ask."""

    def task(self, project: int, number: int) -> StudioTask | None:
        """A task by its number, without the versions of its predictions; None where the project has no such task."""
        item = {"filter": "filter:tasks:id", "operator": "equal", "type": "Number", "value": number}
        query = {"filters": {"conjunction": "and", "items": [item]}}
        for task in self._listed(project, query, 1):
            return StudioTask(int(task["id"]), dict(task["data"]), frozenset(), bool(task.get("total_annotations")))
        return None

    def backends(self, project: int) -> list[dict[str, Any]]:
        """The connected ML backends, the one that is asked first. Label Studio calls `/health` and `/setup` of each
        before it answers."""
        found = self._json("GET", "/api/ml/", params={"project": project})
        return sorted(found, key=lambda backend: int(backend["id"]))

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        """The webhooks of a project, and those of the whole organisation (`project` is None)."""
        return [each for each in self._json("GET", "/api/webhooks/") if each["project"] in (None, project)]

    def refuses_backend(self, project: int, url: str) -> tuple[int, str] | None:
        """The status and words with which Label Studio refuses a backend's address; None where it takes it.

        Basic authentication without a user name is refused, but only after the address was looked at.
        """
        body = {"project": project, "url": url, "auth_method": "BASIC_AUTH"}
        response = self._refusal("/api/ml/", body)
        status = response.status_code
        return (status, error_detail(response)) if status in (403, 500) else None

    def refuses_webhook(self, project: int, url: str) -> str:
        """The words with which Label Studio refuses the address of a webhook; "" where it takes it."""
        body = {"project": project, "url": url, "actions": [_ACTION]}
        response = self._refusal("/api/webhooks/", body)
        if response.status_code != 400:
            return error_detail(response) if response.status_code in (403, 500) else ""
        found = (response.json().get("validation_errors") or {}).get("url", [])
        return " ".join(map(str, found)) if isinstance(found, list) else str(found)

    def touch(self, project: int) -> None:
        """Updates a project by nothing, which sends PROJECT_UPDATED to its webhooks."""
        self._json("PATCH", f"/api/projects/{project}/", json={})

    def retrieve(self, project: int, task: int) -> None:
        """What "Retrieve Predictions" does for one selected task."""
        self._json(
            "POST",
            "/api/dm/actions",
            params={"id": "retrieve_tasks_predictions", "project": project},
            json={"selectedItems": {"all": False, "included": [task]}, "project": str(project)},
        )

    def try_backend(self, backend: int) -> tuple[int, list[Any]]:
        """Asks the backend for a prediction of some task of the project without keeping it: the task, the results.

        Raises:
            LabelStudioError: The backend gave no answer (Label Studio says so with 500).
        """
        data = self._json("POST", f"/api/ml/{backend}/predict/test", params={"random": "true"}, json={})
        return int(data["task"]["id"]), list(data.get("response") or [])

    def _refusal(self, path: str, body: dict[str, Any]) -> requests.Response:
        """The answer to a form that must be refused."""
        response = self._send("POST", path, headers=self.authorization(), json=body)
        if response.status_code < 300:
            raise LabelStudioError(f"Label Studio took {body!r}, which it should have refused", response.status_code)
        return response
