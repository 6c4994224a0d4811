"""`lasagna doctor` on set-ups that are broken for real: each trouble of the table is made, and is named first.

One Label Studio for nearly all of them; a second one for what is decided when Label Studio starts.
"""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
from click.testing import CliRunner
from flask import Response

from backend.commands.doctor import doctor
from backend.demo.local_label_studio import LocalLabelStudio
from backend.doctor.case import Case, Check, Finding, NotYetError, finding
from backend.doctor.examine import as_json, examine, not_known
from backend.doctor.troubles import TROUBLES
from backend.queue.services import free_port
from backend.queue.store import Store, connect
from backend.registry.registry import Registry
from backend.studio.client import LabelStudioError
from backend.studio.project_id import number_of, project_uid
from backend.worker.rq_worker import LasagnaWorker
from lab.bench.peer_models import write_model
from lasagna.checkpoint.vocabulary import Taught, Vocabulary, write_vocabulary
from lasagna.settings import Settings
from tests.backend.backend_helpers import StubLabelStudio, asked, browser_session, make_jwt, png
from tests.backend.doctor.doctor_world import CONFIG, World

pytestmark = pytest.mark.label_studio

IMAGE = '<Image name="image" value="$image"/>'
BRUSH = '<BrushLabels name="brush" toName="image">{}</BrushLabels>'
CAT = '<Label value="Cat"/>'


@pytest.fixture(scope="module")
def strict(installed_label_studio: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLabelStudio]:
    """A Label Studio, still starting, that refuses webhooks to private addresses and does not know its own address."""
    environ = {"SSRF_PROTECTION_ENABLED": "true", "LABEL_STUDIO_HOST": "http://label.invalid:8080"}
    with LocalLabelStudio(installed_label_studio, tmp_path_factory.mktemp("strict"), environ=environ) as running:
        yield running


@pytest.fixture(scope="module")
def sound(
    label_studio: Any,
    strict: LocalLabelStudio,
    start_backend: Any,
    random_checkpoint: Path,
    photos: dict[str, Path],
    redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    backend, folder = start_backend(str(random_checkpoint)), tmp_path_factory.mktemp("doctor")
    other_redis = redis_url.rsplit("/", 1)[0] + "/15"
    return World(label_studio, strict, backend, random_checkpoint, photos, folder, other_redis)


@pytest.fixture
def world(sound: World, tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        sound.stack, sound.folder = stack, tmp_path
        yield sound


# --- the set-ups ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A set-up that `make` breaks, the trouble that is named first, and what its message says of it."""

    trouble: str
    name: str
    words: tuple[str, ...]
    make: Callable[[World], Case]


ROWS: list[Row] = []


def row(trouble: str, *words: str, name: str = "") -> Callable[[Callable[[World], Case]], Callable[[World], Case]]:
    def add(make: Callable[[World], Case]) -> Callable[[World], Case]:
        ROWS.append(Row(trouble, name or make.__name__, words, make))
        return make

    return add


@row("redis-gone", "redis://***@127.0.0.1:1/0 does not answer")
def no_redis(world: World) -> Case:
    return world.case(REDIS_URL="redis://:hidden@127.0.0.1:1/0")


@row("redis-unfit", "maxmemory-policy allkeys-lru", "noeviction")
def a_redis_that_throws_away(world: World) -> Case:
    client = redis.Redis.from_url(world.other_redis)
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", "200mb")

    def back() -> None:
        client.config_set("maxmemory", "0")
        client.config_set("maxmemory-policy", "noeviction")

    world.stack.callback(back)
    return world.case(REDIS_URL=world.other_redis)


@row("worker-none", "no worker with a loaded model", "and no other")
def no_worker(world: World) -> Case:
    return world.case(REDIS_URL=world.other_redis)


@row("worker-none", "found: 1, only for training")
def a_worker_that_trains(world: World) -> Case:
    return born(world, world.case(REDIS_URL=world.other_redis), "", queues=["train"])


@row("worker-versions", "different models (one-1, two-2)")
def two_workers_with_different_models(world: World) -> Case:
    return born(world, world.case(REDIS_URL=world.other_redis), "one-1", "two-2")


def born(world: World, case: Case, *versions: str, queues: Any = ("interactive", "predict")) -> Case:
    """Workers as the case's Redis knows them."""
    store = Store(connect(case.settings.redis_url))
    for version in versions:
        worker = LasagnaWorker(store.redis, store, 1, queues, model_version=version)
        worker.register_birth()
        world.stack.callback(worker.register_death)
    return case


@row("label-studio-gone", "cannot be reached: connection refused")
def no_label_studio(world: World) -> Case:
    return world.case(LABEL_STUDIO_URL="http://127.0.0.1:1")


@row("label-studio-other", "is not Label Studio: it answers 404, application/json, to /api/version")
def another_program(world: World) -> Case:
    return world.case(LABEL_STUDIO_URL=world.backend.url)


@row("label-studio-other", "it redirects to https://label.example.org/")
def a_redirect(world: World) -> Case:
    url, _ = world.gateway(**{"api/version": lambda: redirect("https://label.example.org/")})
    return world.case(LABEL_STUDIO_URL=url)


def redirect(to: str) -> Response:
    return Response(status=301, headers={"Location": to})


@row("label-studio-failed", "refused or failed: GET /api/webhooks/", "answered 502")
def a_label_studio_that_fails(world: World) -> Case:
    url, _ = world.gateway(world.label_studio.url, **{"api/webhooks/": lambda: Response(status=502)})
    token = world.label_studio.login.token
    return world.case(world.project(), LABEL_STUDIO_URL=url, LABEL_STUDIO_TOKEN=token)


@row("address-unknown", "LASAGNA_LABEL_STUDIO_URL is not set, and no /setup has come for project 7")
def nobody_said_where(world: World) -> Case:
    return born(world, world.case(7, REDIS_URL=world.other_redis), "one-1")


def with_token(world: World, token: str) -> Case:
    return world.case(LABEL_STUDIO_URL=world.label_studio.url, LABEL_STUDIO_TOKEN=token)


@row("token-missing", "there is no token")
def no_token(world: World) -> Case:
    case = world.case(REDIS_URL=world.other_redis, LABEL_STUDIO_URL=world.label_studio.url)
    return born(world, case, "one-1")


@row("token-cut", "in LASAGNA_LABEL_STUDIO_TOKEN is cut off")
def a_token_from_the_list(world: World) -> Case:
    assert world.personal_token
    [listed] = world.call("GET", "/api/token/")
    return with_token(world, listed["token"])


@row("token-expired", "the personal access token in LASAGNA_LABEL_STUDIO_TOKEN ended on 2020-09-13 12:26 UTC")
def a_token_that_has_ended(world: World) -> Case:
    return with_token(world, make_jwt("refresh", 1_600_000_000))


@row("token-access", "is an access token, which lives for five minutes")
def an_access_token(world: World) -> Case:
    body = {"refresh": world.personal_token}
    answer = requests.post(world.label_studio.url + "/api/token/refresh/", json=body, timeout=60)
    return with_token(world, answer.json()["access"])


@row("token-refused", "does not accept the legacy token", "Invalid token")
def a_wrong_token(world: World) -> Case:
    return with_token(world, "0" * 40)


@row("token-refused", "does not accept the personal access token", "blacklisted")
def a_revoked_token(world: World) -> Case:
    revoked = world.personal_token
    del world.personal_token  # the next one revokes it
    assert world.personal_token != revoked
    return with_token(world, revoked)


@row("token-legacy-off", "that Label Studio sent with /setup is a legacy one", "switched off")
def legacy_tokens_are_off(world: World) -> Case:
    case = world.case(world.project())
    session, address = browser_session(world.label_studio), world.label_studio.url + "/api/jwt/settings"
    off = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": False}
    session.post(address, json=off, timeout=60).raise_for_status()
    world.stack.callback(session.post, address, json={**off, "legacy_api_tokens_enabled": True}, timeout=60)
    return case


@row("clock", "s ahead of that of Label Studio")
def a_clock_that_is_ahead(world: World) -> Case:
    case = with_token(world, world.label_studio.login.token)
    case.clock = lambda: time.time() + 600
    return case


@row("clock", "behind that of Label Studio")
def a_clock_that_is_behind(world: World) -> Case:
    case = with_token(world, world.personal_token)
    case.clock = lambda: time.time() - 7200
    return case


@row("project-none", "has no project 99999 for the legacy token of")
def no_such_project(world: World) -> Case:
    case = with_token(world, world.label_studio.login.token)
    case.project_number = 99999
    return case


def configured(world: World, config: str) -> Case:
    case = with_token(world, world.label_studio.login.token)
    case.project_number = world.project(config, url=None, data=[])
    return case


@row("config-control", 'found <Image name="image">, <Labels name="l">', "no Brush, Bitmask, MagicWand")
def labels_without_a_brush(world: World) -> Case:
    return configured(world, f'<View>{IMAGE}<Labels name="l" toName="image">{CAT}</Labels></View>')


@row("config-control", '<BrushLabels name=""> is not served: it has no name', name="a control without a name")
def without_a_name(world: World) -> Case:
    return configured(world, f'<View>{IMAGE}<BrushLabels toName="image">{CAT}</BrushLabels></View>')


@row("config-alias", "'Cat' and 'Dog' of brush are both written 'pet'")
def one_alias_for_two(world: World) -> Case:
    labels = '<Label value="Cat" alias="pet"/><Label value="Dog" alias="pet"/>'
    return configured(world, f"<View>{IMAGE}{BRUSH.format(labels)}</View>")


@row("config-absent", "has 'cat', which no control has as a label")
def a_choice_that_is_no_label(world: World) -> Case:
    choices = '<Choices name="absent" toName="image" choice="multiple"><Choice value="cat"/><Choice value="Cat"/>'
    return configured(world, f"<View>{IMAGE}{BRUSH.format(CAT)}{choices}</Choices></View>")


@row("note-not-served", '<VectorLabels name="e"> is not served: lines have no area')
def labels_of_another_control(world: World) -> Case:
    lines = '<VectorLabels name="e" toName="image"><Label value="Moon"/></VectorLabels>'
    return configured(world, f"<View>{IMAGE}{BRUSH.format(CAT)}{lines}</View>")


@row(
    "note-not-served",
    '<Image name="other"> is not served: no control with labels draws on it',
    name="an image to look at",
)
def another_image(world: World) -> Case:
    second = '<Image name="other" value="$other"/>'
    return configured(world, f"<View>{IMAGE}{BRUSH.format(CAT)}{second}</View>")


@row(
    "note-not-served",
    '<BrushLabels name="brush"> is served in part: predictions are drawn on image and other',
    name="a control of two images",
)
def a_control_of_two_images(world: World) -> Case:
    second = '<Image name="other" value="$other"/>'
    shared = BRUSH.format(CAT).replace('toName="image"', 'toName="image,other"')
    return configured(world, f"<View>{IMAGE}{second}{shared}</View>")


@row("backend-none", "has no ML backend")
def no_backend(world: World) -> Case:
    return configured(world, CONFIG)


@row("backend-blocked", "does not call http://127.0.0.2:9090, because that is a private address", "127.0.0.2/32")
def a_private_address(world: World) -> Case:
    case = configured(world, CONFIG)
    case.backend_url = "http://127.0.0.2:9090"
    return case


@row("backend-unresolved", "does not know the host of http://backend.invalid:9090", "Can't resolve hostname")
def an_unknown_host(world: World) -> Case:
    case = configured(world, CONFIG)
    case.backend_url = "http://backend.invalid:9090"
    return case


@row("backend-other", "the first of the 2 connected backends only", "it says that it is Another")
def another_backend_first(world: World) -> Case:
    url, rules = world.gateway()
    rules["health"] = lambda: Response(json.dumps({"status": "UP", "model_class": "Another"}), mimetype="text/json")
    project = world.project(url=url)
    world.connect(project, world.backend.url)
    return world.case(project)


@row("backend-down", "from here nothing answers either: connection refused")
def no_web_process(world: World) -> Case:
    with ExitStack() as before:
        world.stack, kept = before, world.stack
        project = world.project(url=world.web())
        world.stack = kept
    return world.case(project)


@row("backend-unreachable", "which does answer from here")
def a_slow_health(world: World) -> Case:
    url, rules = world.gateway()
    project = world.project(url=url)
    rules["health"] = lambda: time.sleep(1.4)  # Label Studio waits for a second
    return world.case(project)


@row("backend-password", "wants a user name and password")
def a_password_since(world: World) -> Case:
    port = free_port()
    with ExitStack() as before:
        world.stack, kept = before, world.stack
        project = world.project(url=world.web(port))
        world.stack = kept
    world.web(port, LASAGNA_BASIC_AUTH="ann:studio")
    return world.case(project)


def with_registry(world: World) -> tuple[int, Registry, str]:
    """A project of a web process with a registry of its own, in which a version is the champion."""
    registry = Registry(world.folder / "registry")
    project = world.project(url=world.web(LASAGNA_REGISTRY=str(registry.folder)))
    uid = project_uid(world.api.project(project))
    version = registry.add(world.checkpoint, project=uid, parent="", snapshot="", metrics={}, name="tuned")
    registry.promote(uid, version.id, "")
    return project, registry, version.id


@row("backend-password", "wants a user name and password")
def a_gateway_that_wants_a_password(world: World) -> Case:
    url, rules = world.gateway()
    project = world.project(url=url)
    rules["health"] = lambda: Response(status=401)
    return world.case(project)


@row("backend-setup", "refuses the project: the champion of project", "is gone")
def the_champion_is_gone(world: World) -> Case:
    project, registry, version = with_registry(world)
    shutil.rmtree(registry.version(version).folder)
    return world.case(project)


@row("backend-redis", "its /setup did not arrive in the Redis that was looked at")
def another_redis(world: World) -> Case:
    case = with_token(world, world.label_studio.login.token)
    case.project_number = world.project(url=world.web(LASAGNA_REDIS_URL=world.other_redis))
    return case


@row("note-interactive", 'smart="true", and the connection is not interactive')
def not_interactive(world: World) -> Case:
    return world.case(world.project(CONFIG.replace("<BrushLabels ", '<BrushLabels smart="true" ')))


@row("note-train-on-submit", "every submitted annotation asks for a fine-tune")
def training_on_submit(world: World) -> Case:
    project = world.project()
    world.change(project, start_training_on_annotation_update=True)
    return world.case(project)


@row("note-deadline", "/predict may take 90.0 s")
def a_long_deadline(world: World) -> Case:
    return world.case(world.project(), PREDICT_DEADLINE="90")


@row("note-unknown", "was never taught 'Sky': not drawn, and no absence")
def a_label_that_the_model_was_never_taught(world: World) -> Case:
    folder = shutil.copytree(world.checkpoint, world.folder / "taught")
    write_vocabulary(folder, Vocabulary({"cat": Taught(3)}))
    project, registry, _ = with_registry(world)
    uid = project_uid(world.api.project(project))
    version = registry.add(folder, project=uid, parent="", snapshot="", metrics={}, name="taught")
    registry.promote(uid, version.id, "")
    return world.case(project, REGISTRY=str(registry.folder))


@row("note-closed-list", "does not have in its list 'Sky': not drawn, and no absence. Draw it by hand")
def a_label_that_a_closed_list_lacks(world: World) -> Case:
    folder = write_model("eomt", world.folder / "closed", names=("cat", "dog"))
    project, registry, _ = with_registry(world)
    uid = project_uid(world.api.project(project))
    version = registry.add(folder, project=uid, parent="", snapshot="", metrics={}, name="closed")
    registry.promote(uid, version.id, "")
    return world.case(project, REGISTRY=str(registry.folder))


@row("note-not-trained", "It is another maker's model, and is not fine-tuned here. Corrections stay in")
def a_model_that_is_not_fine_tuned(world: World) -> Case:
    folder = write_model("clipseg", world.folder / "clipseg")
    project, registry, _ = with_registry(world)
    uid = project_uid(world.api.project(project))
    version = registry.add(folder, project=uid, parent="", snapshot="", metrics={}, name="clipseg")
    registry.promote(uid, version.id, "")
    return world.case(project, REGISTRY=str(registry.folder))


@row("webhook-dotless", "takes none for the host name '2130706433'", "Enter a valid URL")
def a_name_without_a_dot(world: World) -> Case:
    # 127.0.0.1 as one number: a name without a dot that every machine resolves
    return world.case(world.project(url=world.backend.url.replace("127.0.0.1", "2130706433")))


@row("webhook-none", "the project has no webhook to")
def a_deleted_webhook(world: World) -> Case:
    project = world.project()
    world.call("DELETE", f"/api/webhooks/{world.webhook(project)['id']}/")
    return world.case(project)


@row("webhook-none", "the project has no webhook to")
def a_changed_address(world: World) -> Case:
    project, url = world.project(), world.web()
    [backend] = world.call("GET", f"/api/ml/?project={project}")
    world.call("PATCH", f"/api/ml/{backend['id']}", {"url": url, "project": project})
    return world.case(project)


def changed_webhook(world: World, **fields: Any) -> Case:
    project = world.project()
    world.call("PATCH", f"/api/webhooks/{world.webhook(project)['id']}/", fields)
    return world.case(project)


@row("webhook-off", "is switched off")
def a_webhook_that_is_off(world: World) -> Case:
    return changed_webhook(world, is_active=False)


@row("webhook-off", "sends no payload")
def a_webhook_without_payload(world: World) -> Case:
    return changed_webhook(world, send_payload=False)


@row("webhook-off", "does not send ANNOTATIONS_CREATED, ANNOTATIONS_DELETED, ANNOTATION_UPDATED")
def a_webhook_of_one_event(world: World) -> Case:
    return changed_webhook(world, send_for_all_actions=False, actions=["ANNOTATION_CREATED"])


@row("webhook-password", "/webhook wants a password (401)")
def a_webhook_without_the_password(world: World) -> Case:
    url = world.web(LASAGNA_BASIC_AUTH="ann:studio")
    given = {"auth_method": "BASIC_AUTH", "basic_auth_user": "ann", "basic_auth_pass": "studio"}
    return impatient(world.case(world.project(url=url, **given)))


def impatient(case: Case) -> Case:
    """What will not come is waited for less long."""
    case.event_seconds = 1.0
    return case


@row("webhook-lost", "did not arrive (from here it is answered with 502)")
def a_gateway_that_drops_webhooks(world: World) -> Case:
    url, _ = world.gateway(webhook=lambda: Response(status=502))
    return impatient(world.case(world.project(url=url)))


@row("note-webhook-stale", "belongs to no connected backend")
def a_webhook_that_is_left(world: World) -> Case:
    project = world.project(url=world.web())
    [backend] = world.call("GET", f"/api/ml/?project={project}")
    world.call("DELETE", f"/api/ml/{backend['id']}")
    world.connect(project, world.backend.url)
    return world.case(project)


@row("tasks-none", "has no tasks")
def no_tasks(world: World) -> Case:
    return world.case(world.project(data=[]))


@row("tasks-none", "has no tasks with the number 999999")
def no_such_task(world: World) -> Case:
    return world.case(world.project(), 999999)


@row("image-field", "has no field 'image'", "it has: picture")
def another_field(world: World) -> Case:
    project = world.project(CONFIG.replace("$image", "$picture"), data=[{"picture": "/data/upload/a.png"}])
    world.change(project, label_config=CONFIG)
    return world.case(project)


def with_image(world: World, address: Any, **settings: str) -> Case:
    return world.case(world.project(data=[{"image": address}]), **settings)


@row("image-field", "which is no address of an image")
def an_empty_field(world: World) -> Case:
    return with_image(world, "")


@row("image-address", "the field holds HTML; import the address alone")
def html(world: World) -> Case:
    return with_image(world, '<img src="/data/upload/a.png"/>')


@row("image-address", "a path on somebody's machine", name="a path of Windows")
def a_path_of_windows(world: World) -> Case:
    return with_image(world, "C:\\Users\\me\\a.jpg")


@row("task-labels", "the task lists no labels for the image 'image'")
def no_labels_in_the_task(world: World) -> Case:
    config = f'<View>{IMAGE}<BrushLabels name="brush" toName="image" value="$labels"/></View>'
    return world.case(world.project(config, data=[{"image": "/data/upload/a.png", "labels": []}]))


@row("note-image-missing", "has no image other", "has no field 'other'")
def an_image_that_came_later(world: World) -> Case:
    second = '<Image name="other" value="$other"/>'
    own = '<BrushLabels name="second" toName="other"><Label value="Cat"/></BrushLabels>'
    config = f"<View>{IMAGE}{second}{BRUSH.format(CAT)}{own}</View>"
    project = world.project(CONFIG)
    world.change(project, label_config=config)
    return world.case(project)


@row("note-list", "shows a list of 2 images in 'image'")
def several_images(world: World) -> Case:
    project = world.project(CONFIG)
    [task, *_] = world.api.tasks(project)
    address = task.data["image"]
    world.call("PATCH", f"/api/tasks/{task.id}/", {"data": {"image": [address, address]}})
    return world.case(project, task.id)


@row("image-upload-gone", "has no uploaded file")
def an_upload_that_is_gone(world: World) -> Case:
    project = world.project(data=[])
    world.api.upload(project, [world.photos["cat"]])
    [file] = world.call("GET", f"/api/projects/{project}/file-uploads?all=true")
    world.call("DELETE", f"/api/import/file-upload/{file['id']}")
    return world.case(project)


@row("image-local-files", "does not serve the local file /data/local-files/?d=a.png: serving them is switched off")
def local_files(world: World) -> Case:
    return with_image(world, "/data/local-files/?d=a.png")


@row("image-cloud", "no storage of the project covers that address")
def a_bucket(world: World) -> Case:
    return with_image(world, "s3://bucket/a.png")


@row("image-elsewhere", "lies on another host", "is not fetched")
def another_host(world: World) -> Case:
    return with_image(world, "https://images.example.org/a.png")


@row("image-broken", "is not an image in a format that is read here")
def no_image(world: World) -> Case:
    project, file = world.project(data=[]), world.folder / "a.png"
    file.write_text("not an image")
    world.api.upload(project, [file])
    return world.case(project)


@row("image-unreachable", "the server answered 404")
def another_path(world: World) -> Case:
    return with_image(world, "/static/none.png")


@row("predict-failed", "failed in the worker", "is not fetched")
def the_worker_may_not_fetch_it(world: World) -> Case:
    images = StubLabelStudio()
    images.start()
    world.stack.callback(images.stop)
    images.tokens, images.images["/a.png"] = {""}, png(1)
    return with_image(world, f"{images.url}/a.png", IMAGE_HOSTS=f"127.0.0.1:{images.port}")


@row("predict-waiting", "is still queued after", name="the worker hangs")
def a_worker_that_hangs(world: World) -> Case:
    project = world.project(url=world.web(LASAGNA_PREDICT_DEADLINE="0.5"))
    worker = world.backend.worker.process
    worker.send_signal(signal.SIGSTOP)
    world.stack.callback(worker.send_signal, signal.SIGCONT)
    return world.case(project, PREDICT_DEADLINE="0.5")


@row("predict-error", "ML backend did not return any predictions")
def a_gateway_that_cuts(world: World) -> Case:
    url, _ = world.gateway(predict=lambda: Response(status=504))
    return world.case(world.project(url=url))


@row("predict-dropped", "was predicted and answered")
def an_answer_without_entries(world: World) -> Case:
    def predicted_and_lost() -> Response:
        from flask import request

        requests.post(world.backend.url + "/predict", json=request.get_json(), timeout=100)
        return Response(json.dumps({"results": []}), mimetype="application/json")

    url, _ = world.gateway(predict=predicted_and_lost)
    return world.case(world.project(url=url))


@row("predict-version", "Label Studio was told tuned-", "and random-", "answered")
def two_registries(world: World) -> Case:
    project, _, _ = with_registry(world)
    return world.case(project)


@row("predict-mismatch", "has the label 'Dog', which 'brush' does not have")
def labels_that_were_renamed(world: World) -> Case:
    project = world.project(CONFIG.replace("Cat", "Dog").replace("Sky", "Sea"))
    [task] = world.api.tasks(project)
    rle = [0, 0, 0, 1]
    region = {"id": "a", "from_name": "brush", "to_name": "image", "type": "brushlabels", "image_rotation": 0}
    region |= {"original_width": 451, "original_height": 300}
    region["value"] = {"format": "rle", "rle": rle, "brushlabels": ["Dog"]}
    found = {"model_version": asked(world.backend.model_version, CONFIG), "score": 0.5, "result": [region]}
    world.api.create_prediction(task.id, found)
    world.change(project, label_config=CONFIG)
    return world.case(project)


@row("note-outdated", "1 of 2 predictions are outdated (1: the label 'Dog' was removed)")
def a_label_was_removed(world: World) -> Case:
    """The doctor itself renews that of the task that it sends."""
    project = world.project(CONFIG.replace("</Brush", '<Label value="Dog"/></Brush'), data=[{"image": world.photo}] * 2)
    world.api.retrieve_predictions(project)
    world.change(project, label_config=CONFIG)
    return world.case(project)


@row("shown-off", "does not use predictions to prelabel tasks")
def predictions_are_not_used(world: World) -> Case:
    project = world.project()
    world.change(project, show_collab_predictions=False)
    return world.case(project)


@row("shown-other", "shows those of 'older'")
def another_version_is_chosen(world: World) -> Case:
    project = world.project()
    [task] = world.api.tasks(project)
    world.api.create_prediction(task.id, {"model_version": "older", "score": 0.5, "result": []})
    world.change(project, model_version="older")
    return world.case(project)


@row("shown-other", "shows those of no model")
def no_version_is_chosen(world: World) -> Case:
    project = world.project()
    world.change(project, model_version="")
    return world.case(project)


def of_strict(world: World) -> Case:
    """A project of the Label Studio that is strict with webhooks."""
    api = world.strict.wait().api()
    project = api.create_project("strict", CONFIG)
    with pytest.raises(LabelStudioError, match="reserved network address"):  # and it is connected nevertheless
        api.connect_backend(project, world.backend.url)
    known = {"LASAGNA_REDIS_URL": world.backend.redis_url}
    settings = Settings.load(known, label_studio_url=api.url, label_studio_token=api.token)
    return Case(settings, project)


@row("host-name", "calls itself http://label.invalid:8080, and that does not work from here")
def a_host_name_that_does_not_work(world: World) -> Case:
    return of_strict(world)


@row("host-name", "calls itself http://label.invalid:8080", name="the only address is one that does not work")
def only_that_host_name(world: World) -> Case:
    return world.case(of_strict(world).project_number)


@row("webhook-blocked", "takes no webhook to", "a private address")
def webhooks_to_private_addresses(world: World) -> Case:
    case = of_strict(world)
    configured = {"LABEL_STUDIO_URL": world.strict.url, "LABEL_STUDIO_TOKEN": world.strict.login.token}
    return world.case(case.project_number, **configured)


@pytest.mark.parametrize("broken", ROWS, ids=[f"{one.trouble}: {one.name.replace('_', ' ')}" for one in ROWS])
def test_the_first_trouble_is_named(world: World, broken: Row) -> None:
    case = broken.make(world)
    found = first(case)
    assert found.trouble == broken.trouble, found
    assert found.state == ("note" if TROUBLES[broken.trouble].is_note else "wrong")
    for words in broken.words:
        assert words in found.words
    assert found.fix
    assert "{" not in found.words + found.fix
    for secret in ("hidden", "studio:", world.label_studio.login.token, world.strict.login.token):
        assert secret not in found.words + found.fix


def first(case: Case) -> Finding:
    """The first trouble or note; checks after it are not made."""
    seen = []
    for found in examine(case):
        if found.trouble:
            return found
        seen.append(f"{found.check} {found.state}: {found.words}")
    pytest.fail("no trouble: " + "\n".join(seen))


def test_every_trouble_is_made() -> None:
    assert {one.trouble for one in ROWS} == set(TROUBLES)


class TestSound:
    def test_everything_is_ok_twice(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first time the task's prediction is stored, the second time it is tried; nothing else comes of it."""
        project = world.project()
        [task] = world.api.tasks(project)
        before = (world.call("GET", f"/api/ml/?project={project}"), world.webhook(project))
        for wanted in (f"task {task.id} has it now", f"task {task.id} was tried and nothing kept"):
            findings = list(examine(world.case(project)))
            assert [found for found in findings if found.state != "ok"] == []
            assert wanted in next(found for found in findings if found.check == "prediction").words
            [prediction] = world.api.predictions(task.id)
            assert prediction["model_version"] == asked(world.backend.model_version, CONFIG)
        [backend], webhook = world.call("GET", f"/api/ml/?project={project}"), world.webhook(project)
        assert backend["id"] == before[0][0]["id"]
        assert webhook == before[1]

    def test_a_password_that_all_have(self, world: World) -> None:
        url = world.web(LASAGNA_BASIC_AUTH="ann:wl7-q4").replace("//", "//ann:wl7-q4@")
        findings = list(examine(world.case(world.project(url=url))))
        assert [found for found in findings if found.state != "ok"] == []
        assert not [found for found in findings if "wl7-q4" in found.words]

    def test_a_correction_arrives_by_the_address_with_the_password(self, world: World, eventually: Any) -> None:
        """Label Studio makes the webhook from the address of the backend, and sends the password that stands in it."""
        url = world.web(LASAGNA_BASIC_AUTH="ann:wl7-q4")
        by_address = world.project(url=url.replace("//", "//ann:wl7-q4@"))
        by_fields = world.project(url=url, auth_method="BASIC_AUTH", basic_auth_user="ann", basic_auth_pass="wl7-q4")
        store = Store(connect(world.backend.redis_url))
        for project in (by_fields, by_address):
            [task] = world.api.tasks(project)
            world.api.create_annotation(task.id, [], lead_time=1.0)

        def corrected() -> list[str]:
            found = (event["project"] for event in store.events() if event["action"] == "ANNOTATION_CREATED")
            return [number_of(project) for project in found]

        eventually(lambda: str(by_address) in corrected(), what="the event of the annotation")
        assert str(by_fields) not in corrected(), "it was sent first; Label Studio gives webhooks no password"

    def test_a_secret_in_place_of_the_password(self, world: World) -> None:
        """In the header of the webhook, for annotations only."""
        url = world.web(LASAGNA_BASIC_AUTH="ann:wl7-q4", LASAGNA_WEBHOOK_SECRET="shared-word")
        given = {"auth_method": "BASIC_AUTH", "basic_auth_user": "ann", "basic_auth_pass": "wl7-q4"}
        project = world.project(url=url, **given)
        address = f"/api/webhooks/{world.webhook(project)['id']}/"
        world.call("PATCH", address, {"headers": {"X-Lasagna-Secret": "shared-word"}})
        assert [found for found in examine(world.case(project)) if found.state != "ok"] == []
        actions = ["ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED"]
        world.call("PATCH", address, {"send_for_all_actions": False, "actions": actions})
        findings = list(examine(world.case(project)))
        assert [found for found in findings if found.state != "ok"] == []
        assert "not tried" in next(found for found in findings if found.check == "webhook").words

    def test_a_personal_token(self, world: World) -> None:
        case = with_token(world, world.personal_token)
        case.project_number = world.project()
        findings = list(examine(case))
        assert [found for found in findings if found.state != "ok"] == []
        assert "personal access token of" in next(found for found in findings if found.check == "token").words


class TestCommand:
    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(doctor, arguments)

    @pytest.fixture(autouse=True)
    def environ(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LASAGNA_REDIS_URL", world.backend.redis_url)

    def test_nothing_is_wrong(self, world: World) -> None:
        done = self.run("--project", str(world.project()))
        assert done.exit_code == 0
        assert done.output.rstrip().endswith("Nothing is wrong.")
        assert len(re.findall(r"^ok ", done.output, flags=re.MULTILINE)) == 14

    def test_without_a_project(self, world: World) -> None:
        project = world.project(data=[])
        done = self.run()
        assert done.exit_code == 0
        skipped = re.findall(r"^skipped (\S+) +(.*)$", done.output, flags=re.MULTILINE)
        assert len(skipped) == 9
        assert skipped[0][1].startswith("because no project is named: --project NUMBER (connected: ")
        assert str(project) in skipped[0][1]
        assert {words for _, words in skipped} == {skipped[0][1]}
        assert "Nothing is wrong." not in done.output
        assert "Nothing is wrong with the installation." in done.output

    def test_the_first_is_named_last(self, world: World) -> None:
        """So that it is what stands above the prompt; the fix of a later one is below it."""
        project = world.project(url=None, data=[])
        done = self.run("--project", str(project))
        assert done.exit_code == 1
        *_, said, fix = done.output.rstrip().splitlines()
        assert said == f"First: project {project} has no ML backend"
        assert fix.startswith("Fix:   connect it under Settings > Model")
        assert "fix: import images" in done.output
        assert "skipped prediction   because backend is wrong" in done.output

    def test_json(self, world: World) -> None:
        project = world.project(url=None)
        done = self.run("--project", str(project), "--json")
        assert done.exit_code == 1
        report = json.loads(done.stdout)
        assert report["ok"] is False
        assert report["first_wrong"]["trouble"] == "backend-none"
        assert [one["check"] for one in report["checks"]][:3] == ["redis", "worker", "label-studio"]
        assert {one["state"] for one in report["checks"]} == {"ok", "wrong", "skipped"}


class TestNotYet:
    """A prediction that was delivered a moment ago: Label Studio's test of the backend brings nothing."""

    def findings(self, monkeypatch: pytest.MonkeyPatch, tries: int) -> list[Finding]:
        made: list[str] = []

        def later(case: Case) -> str:
            made.append("")
            if len(made) <= tries:
                raise NotYetError("because the prediction of task 3 was delivered a moment ago")
            return "2 regions"

        def shown(case: Case) -> str:
            case.wrong("shown-off", project=3, title="LaSagnA")

        checks = (Check("labels", (), lambda case: "2 asked"), Check("prediction", ("labels",), later),
                  Check("shown", ("prediction",), shown))  # fmt: skip
        monkeypatch.setattr("backend.doctor.examine.CHECKS", checks)
        return list(examine(Case(Settings.load({}), 3, retry_seconds=0.0)))

    def test_it_is_looked_at_once_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.findings(monkeypatch, tries=1)
        assert [one.state for one in found] == ["ok", "ok", "wrong"]  # what is wrong behind it is found

    def test_what_stays_unknown_is_not_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.findings(monkeypatch, tries=2)
        assert [one.state for one in found] == ["ok", "skipped", "skipped"]
        assert [one.check for one in not_known(found)] == ["prediction", "shown"]
        report = as_json(found)
        assert (report["ok"], report["first_wrong"], report["not_known"]) == (False, None, ["prediction", "shown"])

    def test_the_command_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.findings(monkeypatch, tries=2)
        monkeypatch.setattr("backend.commands.doctor.examine", lambda case: iter(found))
        done = CliRunner().invoke(doctor, ["--project", "3"])
        assert done.exit_code == 3
        assert "Nothing is wrong" not in done.output
        assert "Not known: prediction, shown, because the prediction of task 3" in done.output
        assert CliRunner().invoke(doctor, ["--project", "3", "--json"]).exit_code == 3


def test_texts_can_be_filled_in() -> None:
    for name, trouble in TROUBLES.items():
        values = dict.fromkeys(re.findall(r"{(\w+)", trouble.message + trouble.fix), "x")
        assert "{" not in finding(name, **values).words
