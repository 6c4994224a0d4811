"""What a project's predictions answer, in a real Label Studio: labels are added, renamed and removed in the middle of
the work, parameters and images change, a project is copied. Exactly the predictions that this touches are renewed.

The pictures of docs/first-project.md are taken here: `make pictures`.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from backend.commands.doctor import doctor
from backend.commands.labels import labels
from backend.commands.prelabel import prelabel
from backend.loop.access import StudioAccess, snapshots_of
from backend.studio.project_id import project_uid
from backend.studio.version_names import parse_version
from lasagna.checkpoint.folder import shipped_checkpoints
from lasagna.settings import Settings, registry_folder
from training.data.sources.label_studio import LabelStudioExport

pytestmark = pytest.mark.label_studio


def config_of(*names: str, extra: str = "", control: str = "brush") -> str:
    shown = "".join(f'<Label value="{name}"/>' for name in names)
    return f"""<View><Image name="image" value="$image"/>
    <BrushLabels name="{control}" toName="image">{shown}</BrushLabels>{extra}</View>"""


@dataclass
class Tried:
    """A backend, a Label Studio, and the commands with their settings."""

    backend: Any
    label_studio: Any
    registry: Path

    @property
    def api(self) -> Any:
        return self.label_studio.api()

    def project(self, title: str, config: str, photos: Sequence[Path], **extra: Any) -> tuple[int, list[int]]:
        """A connected project with the photos as tasks. It does not learn from each correction at once: that would
        make every prediction outdated."""
        project = self.api.create_project(title, config)
        tasks = self.api.upload(project, photos)
        body = {"project": project, "url": self.backend.url, "title": "LaSagnA Assist"}
        self.api._json("POST", "/api/ml/", json={**body, "extra_params": {"instant": False, **extra}})
        return project, tasks

    def change(self, project: int, config: str) -> None:
        """As Settings > Labeling Interface saves it; the webhook tells the backend."""
        self.api._json("PATCH", f"/api/projects/{project}/", json={"label_config": config})

    def parameters(self, project: int, **extra: Any) -> None:
        """As Settings > Model > Edit saves them."""
        [connected] = self.api._json("GET", "/api/ml/", params={"project": project})
        body = {key: connected[key] for key in ("url", "title", "project")}
        body["extra_params"] = {"instant": False, **extra}
        self.api._json("PATCH", f"/api/ml/{connected['id']}", json=body)

    def run(self, command: Any, *arguments: str) -> Any:
        found = CliRunner().invoke(command, [*arguments, *(["--json"] if command is not labels else [])])
        assert found.exit_code == 0, found.output + repr(found.exception)
        return json.loads(found.stdout) if command is not labels else found.stdout

    def prelabel(self, project: int, *arguments: str) -> Any:
        return self.run(prelabel, str(project), *arguments)

    def plan(self, project: int) -> dict[str, Any]:
        """What `lasagna prelabel --dry-run` says: numbers, and reasons in words with theirs."""
        plan = self.prelabel(project, "--dry-run")
        names = ("missing", "outdated", "had_one", "annotated")
        return {**{name: plan[name] for name in names}, "why": {why["words"]: why["tasks"] for why in plan["why"]}}

    def versions(self, tasks: Sequence[int]) -> list[list[str]]:
        return [[p["model_version"] for p in self.api.predictions(task)] for task in tasks]

    def retrieve(self, project: int, tasks: Sequence[int]) -> None:
        """ "Retrieve Predictions" of the data manager, for ticked tasks."""
        chosen = {"selectedItems": {"all": False, "included": list(tasks)}, "project": str(project)}
        params = {"id": "retrieve_tasks_predictions", "project": project}
        self.api._json("POST", "/api/dm/actions", params=params, json=chosen)

    def drawn(self, task: int) -> set[str]:
        """Labels of the newest prediction."""
        newest = max(self.api.predictions(task), key=lambda found: int(found["id"]))
        return {name for region in newest["result"] for name in region["value"].get("brushlabels", ())}


@pytest.fixture(scope="module")
def backend(start_backend: Callable[[str], Any], random_checkpoint: Path) -> Any:
    return start_backend("nano" if "nano" in shipped_checkpoints() else str(random_checkpoint))


@pytest.fixture
def tried(backend: Any, label_studio: Any, monkeypatch: pytest.MonkeyPatch) -> Tried:
    environ = {
        "LASAGNA_REDIS_URL": backend.redis_url,
        "LASAGNA_STATE_DIR": str(backend.web.log.parent),
        "LASAGNA_LABEL_STUDIO_URL": label_studio.url,
        "LASAGNA_LABEL_STUDIO_TOKEN": label_studio.login.token,
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return Tried(backend, label_studio, registry_folder(Settings.load()))


def thirty(photos: dict[str, Path], folder: Path) -> list[Path]:
    """Thirty different photos: parts of the five."""
    found = []
    folder.mkdir()
    for number in range(30):
        name = list(photos)[number % 5]
        with Image.open(photos[name]) as image:
            small = image.convert("RGB").resize((240, 180))
        left, top = 4 * (number // 5), 3 * (number // 5)
        found.append(folder / f"{number:02}-{name}.jpg")
        small.crop((left, top, left + 200, top + 150)).save(found[-1], quality=90)
    return found


def box(label: str, width: int = 200, height: int = 150, control: str = "rect") -> dict[str, Any]:
    return {
        "id": f"{label}-box",
        "from_name": control,
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": width,
        "original_height": height,
        "value": {"x": 10, "y": 10, "width": 40, "height": 40, "rotation": 0, "rectanglelabels": [label]},
    }


def people(tried: Tried, project: int, tasks: Sequence[int]) -> list[Any]:
    """What people did, and what they were shown."""
    found = []
    for task in tasks:
        shown = tried.api.open_task(project, task)
        for annotation in shown["annotations"]:
            annotation.pop("created_ago")
        found.append((shown["annotations"], sorted(p["id"] for p in tried.api.predictions(task))))
    return found


def test_labels_change_in_the_middle(
    tried: Tried,
    photos: dict[str, Path],
    tmp_path: Path,
    eventually: Any,
    chromium: Any,
    pytestconfig: pytest.Config,
) -> None:
    """30 tasks, 10 of them annotated: a label is added, one is renamed, one is removed."""

    def config(*names: str) -> str:
        boxes = "".join(f'<Label value="{name}"/>' for name in names)
        return config_of(*names, extra=f'<RectangleLabels name="rect" toName="image">{boxes}</RectangleLabels>')

    project, tasks = tried.project("street", config("sky", "cat", "airplane"), thirty(photos, tmp_path / "photos"))
    assert tried.prelabel(project)["done"] == 30
    first, second, rest = tasks[:10], tasks[10:14], tasks[14:]
    for number, task in enumerate(first):
        shown = int(tried.api.predictions(task)[0]["id"])
        result = [box("sky"), *([box("airplane")] if number < 2 else [])]
        tried.api.create_annotation(task, result, lead_time=4.0, prediction=shown)
    before = people(tried, project, first)
    assert tried.plan(project) == {"missing": 0, "outdated": 0, "had_one": 30, "annotated": 0, "why": {}}

    # a label is added: what nobody annotated is outdated, and renewed wherever somebody asks for it
    tried.change(project, config("sky", "cat", "airplane", "person"))
    added = "the label 'person' was added"
    nothing = {"missing": 0, "had_one": 0, "annotated": 10}
    assert tried.plan(project) == {**nothing, "outdated": 20, "why": {added: 20}}
    page = eventually(lambda: status_page(tried, added), 20, "the reason on the status page")
    assert "20 outdated" in page
    tried.retrieve(project, rest[:3])
    assert [len(set(found)) for found in tried.versions(rest[:4])] == [2, 2, 2, 1]
    assert tried.plan(project) == {**nothing, "had_one": 3, "outdated": 17, "why": {added: 17}}
    if pictures := pytestconfig.getoption("--pictures"):
        take_picture(chromium, f"{tried.backend.url}/status", "Versions that serve", Path(pictures) / "outdated.png")
    checks = tried.run(doctor, "--project", str(project), "--task", str(rest[0]))["checks"]
    [note] = [found for found in checks if found["trouble"] == "note-outdated"]
    assert added in note["words"]
    done = tried.prelabel(project)
    assert (done["done"], done["had_one"], done["annotated"], done["why"]) == (17, 3, 10, {added: 17})
    now = tried.versions([*second, *rest])
    assert [len(found) for found in now] == [1] * 4 + [2] * 3 + [1] * 13, "renewed ones take the place of the old"
    assert people(tried, project, first) == before
    for task in second:
        shown = int(tried.api.predictions(task)[0]["id"])
        tried.api.create_annotation(task, [box("sky"), box("person")], lead_time=4.0, prediction=shown)

    # one is renamed
    tried.change(project, config("heaven", "cat", "airplane", "person"))
    gone = "the label 'sky' was removed; the label 'heaven' was added"
    assert tried.plan(project)["why"] == {gone: 16}
    said = tried.run(labels, "rename", str(project), "sky", "heaven")
    assert "14 regions in 14 annotated tasks" in said
    renamed = "the label 'sky' is called 'heaven' now"
    assert tried.plan(project) == {"missing": 0, "had_one": 0, "annotated": 14, "outdated": 16, "why": {renamed: 16}}

    # and one is removed before anything is renewed
    tried.change(project, config("heaven", "cat", "person"))
    both = "the label 'sky' is called 'heaven' now; the label 'airplane' was removed"
    assert tried.plan(project)["why"] == {both: 16}
    assert tried.prelabel(project)["done"] == 16
    assert tried.plan(project) == {"missing": 0, "outdated": 0, "had_one": 16, "annotated": 14, "why": {}}
    drawn = {name for task in rest for name in tried.drawn(task)}
    assert drawn <= {"heaven", "cat", "person"}
    assert drawn
    assert people(tried, project, first) == before

    # what training and the gate read
    settings = Settings.load()
    access = StudioAccess(tried.api)
    snapshot = snapshots_of(settings, tried.registry, project_uid(tried.api.project(project)), access).take()
    assert snapshot.skipped == {}
    decided: Counter[str] = Counter()
    for split in ("train", "holdout"):
        export = LabelStudioExport(snapshot.folder, split)
        assert set(export.classes) == {"heaven", "cat", "person"}
        for record in export:
            present = {record.classes[index] for index in set(record.read().ravel().tolist()) if index >= 0}
            assert "heaven" in present, "it was called sky when it was drawn"
            decided.update(record.classes)
            assert ("person" in present) == ("person" in record.classes), "it is decided where it stood"
    assert decided == {"heaven": 14, "cat": 14, "person": 4}
    if pictures:
        take_picture(chromium, f"{tried.backend.url}/status", "Whole projects", Path(pictures) / "renewed.png")


def status_page(tried: Tried, words: str) -> str:
    """The page where it holds the words, else ""."""
    import html

    import requests

    page = html.unescape(requests.get(f"{tried.backend.url}/status", timeout=20).text)
    return page if words in page else ""


def take_picture(browser: Any, url: str, heading: str, target: Path) -> None:
    """Of the table below a heading."""
    browser.set_window_size(1000, 900)
    browser.get(url)
    table = browser.find_element("xpath", f"//h2[text()='{heading}']/following-sibling::table[1]")
    table.screenshot(str(target))


@pytest.fixture
def few(photos: dict[str, Path], tmp_path: Path) -> list[Path]:
    return thirty(photos, tmp_path / "photos")[:4]


def test_parameters(tried: Tried, few: list[Path]) -> None:
    project, _ = tried.project("parameters", config_of("sky", "cat"), few)
    assert tried.prelabel(project)["done"] == 4
    tried.parameters(project, threshold=0.9)
    assert tried.plan(project)["why"] == {"threshold was not set and is 0.9": 4}
    tried.api.retrieve_predictions(project)
    assert tried.plan(project)["had_one"] == 4
    tried.parameters(project, exclusive=False)  # as it is without it, and the threshold is gone again
    assert tried.plan(project)["had_one"] == 4, "the first predictions answer it still"


def test_a_task_shows_another_image(tried: Tried, few: list[Path]) -> None:
    project, tasks = tried.project("replaced", config_of("sky", "cat"), few[:3])
    tried.api.retrieve_predictions(project)
    data = [task.data for task in tried.api.tasks(project)]
    tried.api._json("PATCH", f"/api/tasks/{tasks[0]}/", json={"data": data[1]})
    tried.api._json("PATCH", f"/api/tasks/{tasks[2]}/", json={"data": {**data[2], "note": "seen by Ann"}})
    replaced = "the task's image was replaced, or its own labels were changed"
    assert tried.plan(project) == {"missing": 0, "outdated": 1, "had_one": 2, "annotated": 0, "why": {replaced: 1}}
    old = tried.api.predictions(tasks[0])
    assert tried.prelabel(project)["done"] == 1
    [new], [same] = tried.api.predictions(tasks[0]), tried.api.predictions(tasks[1])
    assert new["id"] != old[0]["id"]
    assert [r["value"]["rle"] for r in new["result"]] == [r["value"]["rle"] for r in same["result"]]
    assert tried.plan(project)["had_one"] == 3


def test_what_changes_nothing(tried: Tried, few: list[Path]) -> None:
    """Colours, hotkeys, a header, other questions to people."""
    project, _ = tried.project("colours", config_of("sky", "cat"), few[:2])
    tried.api.retrieve_predictions(project)
    before = tried.plan(project)
    more = '<Header value="Mark everything"/><Choices name="q" toName="image"><Choice value="blurry"/></Choices>'
    changed = config_of("sky", "cat", extra=more).replace('value="sky"', 'value="sky" background="red" hotkey="s"')
    tried.change(project, changed)
    assert tried.plan(project) == before
    assert before["had_one"] == 2


def test_a_control_is_renamed(tried: Tried, few: list[Path]) -> None:
    project, tasks = tried.project("control", config_of("sky", "cat"), few[:2])
    tried.api.retrieve_predictions(project)
    tried.change(project, config_of("sky", "cat", control="paint"))
    assert tried.plan(project)["why"] == {"the control 'brush' (brush) became 'paint' (brush)": 2}
    tried.api.retrieve_predictions(project)
    newest = max(tried.api.predictions(tasks[0]), key=lambda found: int(found["id"]))
    assert {region["from_name"] for region in newest["result"]} <= {"paint"}
    assert tried.plan(project)["had_one"] == 2


@pytest.mark.parametrize(("names", "fresh"), [(("sky", "cat"), 3), (("sky", "cat", "tree"), 0)])
def test_a_project_is_copied(tried: Tried, few: list[Path], names: tuple[str, ...], fresh: int) -> None:
    """Exported with its predictions, and imported into a project with the same labels, or with others."""
    project, _ = tried.project("original", config_of("sky", "cat"), few[:3])
    tried.api.retrieve_predictions(project)
    exported = [
        {"data": task.data, "predictions": [{k: p[k] for k in ("result", "score", "model_version")}]}
        for task in tried.api.tasks(project)
        for p in tried.api.predictions(task.id)
    ]
    copy, _ = tried.project("copy", config_of(*names), [])
    tried.api.import_tasks(copy, exported)
    plan = tried.plan(copy)
    assert (plan["had_one"], plan["outdated"]) == (fresh, 3 - fresh)
    assert plan["why"] == ({} if fresh else {"the label 'tree' was added": 3})


def test_what_somebody_has_begun_stays(tried: Tried, few: list[Path]) -> None:
    project, tasks = tried.project("drafts", config_of("sky", "cat"), few[:2])
    tried.api.retrieve_predictions(project)
    old = [found["id"] for found in tried.api.predictions(tasks[0])]
    draft = {"result": [], "lead_time": 3.0}
    tried.api._json("POST", f"/api/tasks/{tasks[0]}/drafts", params={"project": project}, json=draft)
    assert tried.api.tasks_with_drafts(project) == {tasks[0]}
    tried.change(project, config_of("sky", "cat", "tree"))
    assert tried.prelabel(project)["done"] == 2
    assert [len(found) for found in tried.versions(tasks)] == [2, 1]
    assert set(old) <= {found["id"] for found in tried.api.predictions(tasks[0])}


def test_two_controls(tried: Tried, few: list[Path]) -> None:
    """A label that is added to one of two controls, and one that moves."""
    boxes = '<RectangleLabels name="rect" toName="image">{}</RectangleLabels>'
    cat, tree = '<Label value="cat"/>', '<Label value="tree"/>'
    project, _ = tried.project("controls", config_of("sky", "cat", extra=boxes.format(cat)), few[:2])
    tried.api.retrieve_predictions(project)
    tried.change(project, config_of("sky", "cat", extra=boxes.format(cat + tree)))
    assert tried.plan(project)["why"] == {"the label 'tree' was added": 2}
    tried.change(project, config_of("sky", "cat", extra=boxes.format('<Label value="sky"/>')))
    assert tried.plan(project)["why"] == {"labels are written otherwise, or drawn in another control": 2}


def test_versions_name_the_question(tried: Tried, few: list[Path]) -> None:
    project, tasks = tried.project("named", config_of("sky", "cat"), few[:1])
    tried.api.retrieve_predictions(project)
    [[version]] = tried.versions(tasks)
    name = parse_version(version)
    assert (name.base, name.head, len(name.question)) == (tried.backend.model_version, None, 6)
    [connected] = tried.api._json("GET", "/api/ml/", params={"project": project})
    assert connected["model_version"] == version
