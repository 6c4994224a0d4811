"""The checks of `lasagna doctor` on one task that goes the whole way: its image, its prediction, what annotators see.

Label Studio drops an answer that it cannot use and says nothing, so the way is looked at from both of its ends: in
Label Studio, and in the records of the queue.
"""

import time
from collections import Counter
from typing import Any, NoReturn
from urllib.parse import urlsplit

from backend.doctor.case import Case, Check, NotYetError, cause
from backend.doctor.client import Inspection
from backend.doctor.installation import silent_workers
from backend.doctor.match import misfits
from backend.queue.freshness import Freshness, Reasons
from backend.queue.living_workers import predicting_workers
from backend.queue.provenance import Provenance
from backend.queue.works import work_of
from backend.registry.label_histories import LabelHistories
from backend.studio.client import LabelStudioError, StudioTask
from backend.studio.images import CLOUD_SCHEMES, ImageLimits, fetch_image
from lasagna.errors import ImageError
from lasagna.labels.configuration import TaskImage
from lasagna.masks.image import load_image
from lasagna.settings import registry_folder

_LOOKED_AT = 400
"""Tasks whose predictions are looked at: two pages of them."""
_PREDICT_SECONDS = 150.0
"""Longer than Label Studio itself waits for a prediction."""


def _image(case: Case) -> str:
    """Fetches each image of the task; a prediction is made as long as one can be had."""
    task = case.task = _choose(case)
    assert case.plan is not None
    try:
        images = case.plan.shown(task.data)
    except ImageError as error:
        trouble = "task-labels" if "lists no labels" in str(error) else "image-field"
        case.wrong(trouble, task=task.id, error=str(error))
    said = []
    for image in images:
        width, height, size = _look(case, task, image)
        case.shown.append((image.config, (width, height)))
        name = f"{image.config.name}, " if len(images) > 1 else ""
        said.append(f"{name}{size} bytes, {width} x {height} pixels")
    for image in case.plan.of_task(task.data):
        if image.problem:
            case.note("note-image-missing", task=task.id, image=image.config.name, error=image.problem)
        if image.shared_with:
            case.note("note-list", task=task.id, count=image.shared_with + 1, image=image.config.image_name)
    return f"task {task.id}: {'; '.join(said)}"


def _look(case: Case, task: StudioTask, image: TaskImage) -> tuple[int, int, int]:
    """Width, height and bytes of an image of the task."""
    address = image.address
    known_as = case.store.project(case.uid).url if case.has_redis else ""
    limits = ImageLimits.from_settings(case.settings)
    try:
        data = fetch_image(case.label_studio, address, task.id, limits, known_as=known_as)
    except (ImageError, LabelStudioError) as error:
        is_off = isinstance(error, LabelStudioError) and error.status == 403
        why = "serving them is switched off" if is_off else "no storage covers it, or it is gone"
        trouble = _of_address(address, str(error))
        words = str(error) if trouble == "image-address" else cause(error)  # there the fix is in the words
        case.wrong(trouble, task=task.id, address=address, error=words, why=why)
    try:
        found = load_image(
            data,
            max_bytes=case.settings.max_image_bytes,
            max_pixels=case.settings.max_image_pixels,
            max_memory=case.settings.max_image_memory,
            name=address,
        )
    except ImageError as error:
        case.wrong("image-broken", task=task.id, error=cause(error))
    return found.width, found.height, len(data)


def _choose(case: Case) -> StudioTask:
    """The task that was named, else the first that nobody annotated and that has no prediction, else the first."""
    if case.task_number is not None:
        named = case.label_studio.task(case.number, case.task_number)
        if named is None:
            case.wrong("tasks-none", project=case.number, which=f" with the number {case.task_number}")
        return named
    first = [task for task, _ in zip(case.label_studio.tasks(case.number, page_size=20), range(20), strict=False)]
    if not first:
        case.wrong("tasks-none", project=case.number, which="")
    return next((task for task in first if not task.is_annotated and not task.model_versions), first[0])


def _of_address(address: str, error: str) -> str:
    """The name of the trouble, if an image at this address cannot be fetched."""
    parts = urlsplit(address)
    if "/data/local-files" in parts.path:
        return "image-local-files"
    if "has no uploaded file" in error:
        return "image-upload-gone"
    if parts.scheme in CLOUD_SCHEMES:
        return "image-cloud"
    if parts.scheme == "data":
        return "image-broken"
    if "is not fetched" not in error:
        return "image-unreachable"
    return "image-elsewhere" if parts.scheme in ("http", "https") else "image-address"


def _prediction(case: Case) -> str:
    """Asks for the task's prediction through Label Studio, and looks at what came of it there and in the queue."""
    assert case.plan is not None
    task, started = case.task, time.monotonic()
    slow = Inspection(case.label_studio.url, case.label_studio.token, timeout=_PREDICT_SECONDS)
    before = slow.predictions(task.id)
    own = _newest([found for found in before if found["model_version"] == case.version])
    if own is None:
        slow.retrieve(case.number, task.id)
        known = {found["id"] for found in before}
        found = _newest([found for found in slow.predictions(task.id) if found["id"] not in known])
        if found is None:
            _say_why_none(case, slow, task, time.monotonic() - started)
        _check_version(case, found)
        _check_fit(case, task.id, found)
        how = f"task {task.id} has it now"
    else:
        _check_fit(case, task.id, own)
        number, found = _tried(case, slow)
        _check_version(case, found)
        how = f"task {number} was tried and nothing kept, because task {task.id} has its prediction"
    seconds = time.monotonic() - started
    return f"{len(found['result'])} regions by {case.version} in {seconds:.1f} s; {how}"


def _tried(case: Case, slow: Inspection) -> tuple[int, dict[str, Any]]:
    """A prediction that Label Studio asks for and does not keep, of a task of its choice."""
    started = time.monotonic()
    try:
        number, results = slow.try_backend(int(case.backend["id"]))
    except LabelStudioError as error:
        _say_no_answer(case, case.task.id, error)
    if not (results and isinstance(results[0], dict)):
        task = slow.task(case.number, number)
        if _record(case, task)[0] == "done":
            raise NotYetError(f"because the prediction of task {number} was delivered a moment ago")
        _say_why_none(case, slow, task, time.monotonic() - started)
    return number, results[0]


def _newest(predictions: list[dict[str, Any]]) -> dict[str, Any] | None:
    return max(predictions, key=lambda found: int(found["id"]), default=None)


def _check_version(case: Case, prediction: dict[str, Any]) -> None:
    if prediction["model_version"] != case.version:
        case.wrong("predict-version", asked=case.version, found=prediction["model_version"])


def _check_fit(case: Case, task: int, prediction: dict[str, Any]) -> None:
    assert case.plan is not None
    configs, sizes = zip(*case.shown, strict=True)
    found = misfits(prediction["result"], configs, sizes)
    if found:
        what = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
        case.wrong("predict-mismatch", task=task, what=what, project=case.number)


def _record(case: Case, task: StudioTask | None) -> tuple[str, str]:
    """State and reason of a task in the queue; "" where it never arrived there."""
    assert case.plan is not None
    if task is None:
        return "", ""
    config_key = case.store.keep_config(case.project["label_config"])
    try:
        work = work_of(case.plan, {"id": task.id, "data": task.data}, case.uid, config_key, case.version)
    except ImageError as error:
        return "failed", str(error)
    fields = case.store.fields([work.key])[0]
    return fields.get("state", ""), fields.get("reason", "")


def _say_why_none(case: Case, slow: Inspection, task: StudioTask | None, seconds: float) -> NoReturn:
    number = task.id if task is not None else 0
    state, reason = _record(case, task)
    if state == "failed":
        case.wrong("predict-failed", task=number, error=reason)
    if not predicting_workers(case.store):  # it died a moment ago, and is missed only now
        case.wrong("worker-none", others=silent_workers(case.store))
    if state in ("queued", "running", "ready") and seconds >= case.settings.predict_deadline:
        case.wrong("predict-waiting", task=number, state=state, seconds=round(seconds))
    try:
        slow.try_backend(int(case.backend["id"]))
    except LabelStudioError as error:
        _say_no_answer(case, number, error)
    case.wrong("predict-dropped", task=number, version=case.version)


def _say_no_answer(case: Case, task: int, error: LabelStudioError) -> NoReturn:
    case.wrong("predict-error", task=task, url=case.backend["url"], detail=error.detail or str(error))


def _shown(case: Case) -> str:
    project, title = case.label_studio.project(case.number), str(case.backend["title"])
    if not project["show_collab_predictions"]:
        case.wrong("shown-off", project=case.number, title=title)
    chosen = project["model_version"]
    if chosen not in (title, case.version):
        shown = repr(chosen) if chosen else "no model"
        case.wrong("shown-other", version=case.version, project=case.number, shown=shown, title=title)
    return f"annotators see the predictions of {chosen!r}"


def _up_to_date(case: Case) -> str:
    """Looks for predictions that answer another question than that of now, on the first tasks of the project."""
    assert case.plan is not None
    provenance = Provenance(case.store)
    question = provenance.question_of(case.uid, case.plan, case.settings)
    renamed = LabelHistories(registry_folder(case.settings)).renamed(case.uid)
    reasons = Reasons(provenance, case.version, question, renamed)
    first = [task for task, _ in zip(case.label_studio.tasks(case.number), range(_LOOKED_AT), strict=False)]
    tasks = [task for task in first if not task.is_annotated and task.model_versions]
    found = Counter(why for why in Freshness(provenance, case.uid, case.plan, reasons).outdated(tasks) if why)
    of_all = "" if len(first) < _LOOKED_AT else f" of the first {_LOOKED_AT}"
    if found:
        why = "; ".join(f"{count}: {why.words}" for why, count in found.most_common(3))
        case.note("note-outdated", count=found.total(), all=len(tasks), of_all=of_all, why=why, project=case.number)
    return f"{len(tasks) - found.total()} of {len(tasks)} predictions{of_all} answer what is asked now"


TASK_CHECKS: tuple[Check, ...] = (
    Check("image", ("labels",), _image),
    Check("prediction", ("redis", "worker", "backend", "image"), _prediction),
    Check("shown", ("backend", "prediction"), _shown),
    Check("up-to-date", ("redis", "backend", "labels"), _up_to_date),
)
