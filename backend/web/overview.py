"""What `lasagna jobs` shows: tasks by state, queues, workers; and putting failed tasks back."""

from typing import Any

from backend.instant.changes import Changes
from backend.loop.trainings import Trainings
from backend.queue.jobs import QUEUES, enqueue_works, queue
from backend.queue.living_workers import living_workers
from backend.queue.store import STATES, Store
from backend.registry.known_projects import KnownProjects
from backend.studio.project_id import is_of, number_of
from backend.web.prelabel_jobs import PrelabelJobs


def overview(store: Store, known: KnownProjects, *, limit: int = 20, state: str | None = None) -> dict[str, Any]:
    """Everything that is known about the jobs, as JSON.

    Args:
        store: The records.
        known: The projects.
        limit: Tasks listed per state, those that changed last first.
        state: List only this one.

    Returns:
        `model`, `workers` (living ones: state by name), `queues` (jobs by name), `counts` (tasks by state), `training`
        (by project, see `backend.loop.trainings.Trainings`), `aside` (events and jobs that were
        passed over, with the reason), `learning` (by project, see
        `backend.instant.changes.Changes`), `projects` (whole ones that are pre-labelled now) and
        `tasks`: `state`, `project`, `uid`, `name` (the number, with its Label Studio where several have it), `task`,
        `image`, `model_version`, `reason`, `kind` (of reason), `attempts`,
        `delivery`, `prediction_id`, `seconds_ago`.
    """
    connection, time_there = store.redis, store.now()
    changes, trainings = Changes(store), Trainings(store).overview()
    tasks: list[dict[str, Any]] = []
    for name in STATES if state is None else (state,):
        keys = store.keys(name, limit)
        for key, fields in zip(keys, store.fields(keys), strict=True):
            if fields:  # the list of finished work is trimmed later than its records end
                tasks.append(_described(key, fields, time_there))
    learning, prelabelled = changes.projects(), PrelabelJobs(store).under_way()
    told = (task["uid"] for task in tasks)
    names = known.names({*told, *trainings, *learning, *(job["uid"] for job in prelabelled)})
    for task in tasks:
        task["name"] = names[task["uid"]]
    return {
        "model": store.model(),
        "workers": {w.name: {"state": str(w.get_state()), "pid": w.pid} for w in living_workers(store)},
        "queues": {name: queue(connection, name).count for name in QUEUES},
        "counts": store.counts(),
        "training": {names[uid]: {**each, "uid": uid} for uid, each in trainings.items()},
        "aside": store.aside(),
        "learning": {
            names[uid]: {
                **changes.said(uid),
                "uid": uid,
                "waiting": len(changes.waiting(uid)),
                "aside": changes.aside(uid),
            }
            for uid in learning
        },
        "projects": [{**job, "name": names[job["uid"]]} for job in prelabelled],
        "tasks": tasks,
    }


def retry_failed(store: Store, batch_size: int, project: str | None = None, kind: str | None = None) -> tuple[int, int]:
    """Puts failed tasks back, all or those of a project (uid) or a kind of reason; returns how many are queued again,
    and how many are only to be posted."""
    keys = store.keys("failed")
    chosen = [
        key
        for key, fields in zip(keys, store.fields(keys), strict=True)
        if fields
        and (project is None or is_of(fields["project"], project))
        and kind in (None, fields.get("kind", "other"))
    ]
    states = {key: store.retry(key) for key in chosen}
    queued = [key for key, state in states.items() if state == "queued"]
    enqueue_works(store, queued, batch_size)
    return len(queued), sum(state == "ready" for state in states.values())


def _described(key: str, fields: dict[str, str], time_there: float) -> dict[str, Any]:
    return {
        "key": key,
        "state": fields["state"],
        "project": number_of(fields["project"]),
        "uid": fields["project"],
        "task": int(fields["task"]) if fields.get("task") else None,
        "image": fields.get("image") or None,
        "model_version": fields.get("version"),
        "reason": fields.get("reason") or fields.get("note") or None,
        "kind": fields.get("kind") if fields["state"] == "failed" else None,
        "attempts": int(fields.get("attempts") or 0),
        "delivery": fields.get("delivery") or None,
        "prediction_id": int(fields["prediction_id"]) if fields.get("prediction_id") else None,
        "seconds_ago": round(max(0.0, time_there - float(fields["changed"])), 1),
    }
