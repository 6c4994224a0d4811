"""Edit effort: hand-made masks and tasks whose figures are known, the report over versions, the page, the command."""

import json
from typing import Any

import numpy as np
import pytest
import requests
from click.testing import CliRunner

from backend.app import create_app
from backend.effort.disagreement import disagreement
from backend.effort.measure import (
    ClassEffort,
    Effort,
    RegionCounts,
    TaskEffort,
    boundary_distance,
    edit_effort,
    shown_prediction,
    task_effort,
)
from backend.effort.page import FIGURES, effect, headline, render_effort
from backend.effort.report import EffortReader, EffortReport, Estimate, summarise
from backend.queue.store import Project, Store
from backend.studio.client import LabelStudio
from lasagna.commands.cli import main
from lasagna.errors import DataError
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.conversions import mask_to_brush_rle
from lasagna.settings import Settings
from tests.backend.backend_helpers import CONFIG, PROJECT, TOKEN, StubLabelStudio

PLAN = parse_label_config(CONFIG)
SIZE = (40, 60)


def square(top: int, left: int, side: int = 10, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def brush(id: str, label: str, mask: np.ndarray) -> dict[str, Any]:
    height, width = mask.shape
    value = {"format": "rle", "rle": mask_to_brush_rle(mask), "brushlabels": [label]}
    drawn = {"original_width": width, "original_height": height, "image_rotation": 0, "value": value}
    return {"id": id, "from_name": "brush", "to_name": "image", "type": "brushlabels", **drawn}


def rectangle(id: str, label: str, left: float, top: float, width: float, height: float) -> dict[str, Any]:
    value = {"x": left, "y": top, "width": width, "height": height, "rotation": 0, "rectanglelabels": [label]}
    drawn = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0, "value": value}
    return {"id": id, "from_name": "rect", "to_name": "image", "type": "rectanglelabels", **drawn}


def prediction(
    id: int, regions: list[Any], version: str = "nano-1", at: str = "2026-11-23T10:00:00Z"
) -> dict[str, Any]:
    return {"id": id, "model_version": version, "created_at": at, "result": regions}


def annotation(regions: list[Any], **more: Any) -> dict[str, Any]:
    return {"id": 7, "result": regions, "created_at": "2026-11-24T10:00:00Z", "lead_time": 8.5, **more}


def task(predictions: list[Any], annotations: list[Any]) -> dict[str, Any]:
    return {"id": 3, "predictions": predictions, "annotations": annotations}


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        pytest.param(square(5, 5), square(5, 5), 0.0, id="same"),
        # a dot in the middle of a 3 x 3 square: 1 to the nearest; back, 4 sides are 1 and 4 corners sqrt(2) away
        pytest.param(square(9, 9, 1), square(8, 8, 3), (1 + (4 + 4 * 2**0.5) / 8) / 2, id="dot-in-square"),
        pytest.param(square(5, 5, 1), square(5, 12, 1), 7.0, id="two-dots"),
        pytest.param(square(0, 0, 1), square(39, 59, 1), (39**2 + 59**2) ** 0.5, id="corners-of-the-photo"),
    ],
)
def test_boundary_distance(first: np.ndarray, second: np.ndarray, distance: float) -> None:
    assert boundary_distance(first, second) == pytest.approx(distance, abs=1e-5)
    assert boundary_distance(second, first) == pytest.approx(distance, abs=1e-5)


def test_a_mask_up_to_the_border_of_the_photo_has_its_boundary_there() -> None:
    whole, left = np.ones(SIZE, bool), np.ones(SIZE, bool)
    left[:, 50:] = False
    assert 0 < boundary_distance(whole, left) < 10


def test_effort_between_sets_of_masks() -> None:
    found = edit_effort(
        {"same": square(5, 5), "moved": square(20, 20), "false": square(0, 50, 4), "empty": np.zeros(SIZE, bool)},
        {"same": square(5, 5), "moved": square(20, 22), "missed": square(30, 0), "gone": None},
    )
    assert found.classes["same"] == ClassEffort(100, 100, 0, 0.0)
    assert found.classes["false"] == ClassEffort(16, 0, 16, None)
    assert found.classes["missed"] == ClassEffort(0, 100, 100, None)
    assert (found.classes["moved"].changed, list(found.classes)) == (40, ["same", "moved", "missed", "false"])
    assert found.changed == 156
    assert found.boundary == pytest.approx((found.classes["moved"].boundary or 0) / 2)


def test_nothing_there_is_no_effort() -> None:
    assert (edit_effort({}, {}).changed, edit_effort({}, {}).boundary) == (0, None)


def test_masks_of_different_photos_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        edit_effort({"a": square(0, 0)}, {"a": square(0, 0, size=(20, 20))})


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_regions_by_id_and_pixels_by_class() -> None:
    accepted, moved, relabelled = brush("a", "Cat", square(0, 0)), square(20, 20), brush("c", "Dog", square(0, 40))
    shown = prediction(5, [accepted, brush("b", "Dog", moved), relabelled, rectangle("d", "Dog", 80, 80, 10, 10)])
    submitted = annotation(
        [
            {**accepted, "origin": "prediction"},
            {**brush("b", "Dog", square(20, 22)), "origin": "prediction-changed"},
            {**brush("c", "Cat", square(0, 40)), "origin": "prediction-changed"},
            {**brush("new", "Sky", square(30, 0)), "origin": "manual"},
            {"id": "k", "from_name": "kp", "type": "keypointlabels", "value": {"keypointlabels": ["Cat"]}},
        ],
        parent_prediction=5,
    )
    found = task_effort(task([shown], [submitted]), PLAN)
    assert (found.task, found.model_version, found.seconds, found.pixels) == (3, "nano-1", 8.5, 2400)
    assert found.regions["Cat"] == RegionCounts(accepted=1, changed=1)
    assert found.regions["Dog"] == RegionCounts(changed=1, deleted=1)
    assert found.regions["Sky"] == RegionCounts(added=1)
    assert found.counts == RegionCounts(accepted=1, changed=2, added=1, deleted=1)
    # the rectangle that is deleted lies apart from the brush: 6 x 4 pixels of its own
    assert {name: one.changed for name, one in found.effort.classes.items()} == {"Cat": 100, "Dog": 164, "Sky": 100}


TWO = parse_label_config(
    '<View><Image name="image" value="$image"/><Image name="other" value="$other"/>'
    '<BrushLabels name="brush" toName="image,other"><Label value="Cat"/><Label value="Dog"/></BrushLabels></View>'
)


def on_other(region: dict[str, Any]) -> dict[str, Any]:
    return {**region, "to_name": "other"}


def test_each_image_of_a_task_counts_for_itself() -> None:
    """The second is of another size, and what is drawn there is no correction of the first."""
    large = (80, 90)
    first, second = brush("a", "Cat", square(0, 0)), on_other(brush("b", "Cat", square(5, 5, size=large)))
    added = on_other(brush("c", "Dog", square(30, 30, size=large)))
    both = {**task([prediction(5, [first, second])], [annotation([first, second, added])])}
    both["data"] = {"image": "/data/upload/3/1.png", "other": "/data/upload/3/2.png"}
    found = task_effort(both, TWO)
    assert found.counts == RegionCounts(accepted=2, added=1)
    assert found.pixels == 40 * 60 + 80 * 90
    assert {name: one.changed for name, one in found.effort.classes.items()} == {"Cat": 0, "Dog": 100}


def test_the_same_mask_on_another_image_is_a_correction() -> None:
    region = brush("a", "Cat", square(0, 0))
    moved = {**task([prediction(5, [region])], [annotation([on_other(region)])])}
    moved["data"] = {"image": "/data/upload/3/1.png", "other": "/data/upload/3/2.png"}
    found = task_effort(moved, TWO)
    assert found.counts == RegionCounts(added=1, deleted=1)
    assert found.effort.changed == 200


def test_an_image_that_the_configuration_does_not_have_counts_nowhere() -> None:
    region = brush("a", "Cat", square(0, 0))
    submitted = [region, on_other(brush("b", "Cat", square(0, 0, size=(8, 8))))]
    assert task_effort(task([prediction(5, [region])], [annotation(submitted)]), PLAN).counts == RegionCounts(
        accepted=1
    )


def test_a_mask_that_the_editor_wrote_in_other_runs_is_accepted() -> None:
    region = brush("a", "Cat", square(3, 3))
    other = json.loads(json.dumps(region))
    other["value"]["rle"] = [*region["value"]["rle"], 0]
    assert other != region
    assert task_effort(task([prediction(5, [region])], [annotation([other])]), PLAN).counts == RegionCounts(accepted=1)


def test_a_class_drawn_by_two_controls_is_one_mask() -> None:
    """The rectangle around a brush region of its class is the same object in coarser form."""
    both = [brush("a", "Cat", square(0, 0)), rectangle("b", "Cat", 0, 0, 50, 50)]
    found = task_effort(task([prediction(5, both)], [annotation(both[:1])]), PLAN)
    assert found.effort.changed == 0
    assert found.regions["Cat"] == RegionCounts(accepted=1, deleted=1)


def test_nothing_predicted_and_nothing_submitted() -> None:
    found = task_effort(task([prediction(5, [])], [annotation([])]), PLAN)
    assert (found.effort.classes, found.pixels, found.counts) == ({}, 0, RegionCounts())


OLD, NEW = prediction(1, [{"id": "a"}]), prediction(2, [{"id": "b"}], "nano-2", "2026-11-23T11:00:00Z")
LATE = prediction(3, [{"id": "c"}], "nano-3", "2026-11-25T00:00:00Z")


@pytest.mark.parametrize(
    ("submitted", "shown"),
    [
        pytest.param(annotation([{"id": "b"}], parent_prediction=1), OLD, id="noted"),
        pytest.param(annotation([{"id": "a"}, {"id": "z"}]), OLD, id="shares-ids"),
        pytest.param(annotation([{"id": "z"}]), NEW, id="newest-that-was-there"),
        pytest.param(annotation([]), NEW, id="everything-deleted"),
    ],
)
def test_which_prediction_was_shown(submitted: Any, shown: Any) -> None:
    assert shown_prediction(submitted, [LATE, NEW, OLD]) is shown


@pytest.mark.parametrize(
    ("predictions", "annotations", "message"),
    [
        pytest.param([], [], "not annotated", id="nothing-submitted"),
        pytest.param([OLD], [annotation([], was_cancelled=True)], "skipped by the annotator", id="skipped"),
        pytest.param([LATE], [annotation([])], "no prediction was there", id="predicted-later"),
        pytest.param([OLD], [annotation([], parent_prediction=99)], "is gone", id="gone"),
        pytest.param(
            [prediction(1, [brush("a", "Cat", square(0, 0, size=(8, 8)))])],
            [annotation([brush("a", "Cat", square(0, 0))])],
            "different sizes",
            id="another-photo",
        ),
        pytest.param(
            [prediction(1, [{**brush("a", "Cat", square(0, 0)), "original_width": 61}])],
            [annotation([])],
            "predicted region a of brush: a brush mask has 9600 values",
            id="damaged",
        ),
        pytest.param(
            [prediction(1, [{"id": "a", "from_name": "brush", "value": {"brushlabels": ["Cat"]}}])],
            [annotation([])],
            "does not say the size",
            id="no-size",
        ),
    ],
)
def test_what_cannot_be_compared_is_named(predictions: Any, annotations: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_effort(task(predictions, annotations), PLAN)


# --- figures ----------------------------------------------------------------------------------------------------------


def made(number: int, version: str, changed: int, *, day: int, seconds: float | None = 10.0) -> TaskEffort:
    effort = Effort({"Cat": ClassEffort(200, 200, changed, changed / 50 if changed else 0.0)})
    regions = {"Cat": RegionCounts(changed=1) if changed else RegionCounts(accepted=1)}
    return TaskEffort(number, version, f"2026-11-{day:02}T00:00:00Z", 1000, seconds, effort, regions)


FIRST = [made(i, "nano-9", 100 + 10 * (i % 3), day=1, seconds=20.0) for i in range(12)]
SECOND = [made(i, "nano-1", 0 if i % 2 else 40, day=2, seconds=5.0 if i % 2 else None) for i in range(12, 24)]


def test_versions_stand_in_the_order_of_their_first_predictions() -> None:
    first, second = summarise([*SECOND, *FIRST])
    assert [first.version, second.version] == ["nano-9", "nano-1"]
    assert (first.tasks, second.tasks) == (12, 12)
    assert first.figures["changed_pixels"].value == pytest.approx(110)
    assert second.figures["changed_pixels"].value == pytest.approx(20)
    assert second.figures["changed_share"].value == pytest.approx(0.02)
    assert second.figures["accepted"].value == pytest.approx(0.5)
    assert second.figures["untouched"].value == pytest.approx(0.5)
    assert second.figures["seconds"].value == 5.0
    assert second.regions == RegionCounts(accepted=6, changed=6)
    assert first.against_previous == {}
    low, high = second.figures["changed_pixels"].interval or (0, 0)
    assert 5 < low < 20 < high < 35


def test_whether_a_version_helped() -> None:
    _, second = summarise([*FIRST, *SECOND])
    change = second.against_previous["changed_pixels"]
    assert change.value == pytest.approx(-90)
    assert change.interval is not None
    assert change.interval[1] < 0
    words = headline(EffortReport(3, "photos", summarise([*FIRST, *SECOND])))
    assert words == "With nano-1 annotators changed 20 pixels per photo, 82 % less than with nano-9 (110)."


def test_few_photos_have_no_interval_and_a_small_change_may_be_chance() -> None:
    [few] = summarise(FIRST[:2])
    assert few.figures["changed_pixels"].interval is None
    again = [made(50 + i, "nano-8", 100 + 10 * (i % 4), day=5) for i in range(6)]
    report = EffortReport(3, "photos", summarise([*FIRST, *again]))
    assert "that may be chance" in headline(report)


@pytest.mark.parametrize(
    ("key", "interval", "word"),
    [
        ("changed_pixels", (-9.0, -1.0), "better"),
        ("changed_pixels", (1.0, 9.0), "worse"),
        ("changed_pixels", (-1.0, 9.0), ""),
        ("accepted", (0.1, 0.2), "better"),
        ("accepted", (-0.2, -0.1), "worse"),
        ("accepted", None, ""),
    ],
)
def test_effect(key: str, interval: Any, word: str) -> None:
    figure = next(figure for figure in FIGURES if figure.key == key)
    assert effect(figure, Estimate(1.0, interval)) == word


def test_the_page_escapes_names_and_survives_nothing() -> None:
    report = EffortReport(3, "<b>photos</b>", summarise([*FIRST, *SECOND]), {8: "<i>why</i>"})
    text = render_effort(report)
    assert "<b>photos" not in text
    assert "&lt;b&gt;photos" in text
    assert "&lt;i&gt;why" in text
    assert text.count("<svg") == 5
    assert "http" not in text.replace("http-equiv", "")
    empty = render_effort(EffortReport(3, "photos", ()))
    assert "No corrected task can be compared yet" in empty
    assert "<svg" not in empty


# --- Label Studio -----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(stub: StubLabelStudio) -> StubLabelStudio:
    """Four tasks: two corrected, one skipped, one that was annotated without a prediction."""
    for entry in stub.add_tasks(4):
        entry["updated_at"] = "2026-11-23T00:00:00Z"
    client = LabelStudio(stub.url, TOKEN)
    regions = {number: [brush(f"r{number}", "Cat", square(0, 10 * number))] for number in (1, 2, 3)}
    for number, drawn in regions.items():
        client.create_prediction(number, prediction(0, drawn) | {"id": 100 + number})
    stub.annotate(1, regions[1], parent_prediction=101)
    stub.annotate(2, [brush("r2", "Cat", square(5, 20))], parent_prediction=102)
    stub.annotate(3, [], was_cancelled=True)
    stub.annotate(4, [brush("x", "Sky", square(0, 0))])
    return stub


def test_a_project_is_read_once_and_then_only_what_changed(project: StubLabelStudio) -> None:
    reader, client = EffortReader(), LabelStudio(project.url, TOKEN)
    report = reader.read(client, 3)
    [version] = report.versions
    assert (version.tasks, version.version) == (2, "nano-1")
    assert version.figures["changed_pixels"].value == pytest.approx(50)
    assert version.regions == RegionCounts(accepted=1, changed=1)
    assert report.skipped == {4: "no prediction was there when it was annotated"}

    project.requests.clear()
    project.annotate(1, [], parent_prediction=101)
    again = reader.read(client, 3)
    assert again.versions[0].regions == RegionCounts(changed=1, deleted=1)
    asked = [path for method, path, _ in project.requests if path.startswith("/api/predictions/")]
    assert asked == ["/api/predictions/?task=1"]


def region(kind: str, *labels: str) -> dict[str, Any]:
    return {"id": "r", "type": kind, "value": {kind: list(labels)}}


TWO_CLASSES = parse_label_config(
    '<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">'
    '<Label value="Sky"/><Label value="Road"/></BrushLabels></View>'
)
SKY, ROAD = region("brushlabels", "Sky"), region("polygonlabels", "Road")


@pytest.mark.parametrize(
    ("annotations", "found"),
    [
        pytest.param([[SKY]], {}, id="one"),
        pytest.param([[SKY], [SKY]], {}, id="alike"),
        pytest.param([[SKY, ROAD], [ROAD]], {"Sky": (1, 2)}, id="a class"),
        pytest.param([[SKY], [ROAD], [SKY]], {"Road": (1, 3), "Sky": (2, 3)}, id="three"),
        pytest.param([[SKY], []], {"Sky": (1, 2)}, id="nothing drawn"),
        pytest.param([[SKY], [region("rectanglelabels", "Sky")]], {}, id="another tool"),
        pytest.param([[region("labels", "Sky")], [region("bitmasklabels", "Sky")]], {}, id="separate labels"),
        pytest.param([[SKY], [SKY, region("choices", "Dark")]], {}, id="choices"),
        pytest.param([[SKY], [SKY, {"type": "brush", "value": {}}, {"type": "brushlabels"}, 7]], {}, id="unlabelled"),
        pytest.param([[SKY], None], {"Sky": (1, 2)}, id="no result"),
    ],
)
def test_where_annotators_disagree(annotations: list[Any], found: Any) -> None:
    given = [{"id": i, "result": result} for i, result in enumerate(annotations)]
    skipped = {"id": 9, "was_cancelled": True, "result": [region("brushlabels", "Tree")]}
    assert disagreement({"id": 1, "annotations": [*given, skipped]}, TWO_CLASSES) == found


def test_annotators_agree_where_one_used_a_label_s_former_name() -> None:
    given = [{"id": 1, "result": [SKY]}, {"id": 2, "result": [region("brushlabels", "Heaven")]}]
    task = {"id": 1, "data": {"image": "/a.png"}, "annotations": given}
    assert disagreement(task, TWO_CLASSES) == {"Heaven": (1, 2), "Sky": (1, 2)}
    assert disagreement(task, TWO_CLASSES, {"Heaven": "Sky"}) == {}


def test_classes_of_a_taxonomy_count_too() -> None:
    config = parse_label_config(
        '<View><Image name="image" value="$image"/><Brush name="brush" toName="image"/>'
        '<Taxonomy name="kind" toName="image" perRegion="true" labeling="true">'
        '<Choice value="Sky"/><Choice value="Road"/></Taxonomy></View>'
    )
    drawn = {
        "id": "r",
        "from_name": "brush",
        "to_name": "image",
        "type": "brush",
        "value": {"format": "rle", "rle": []},
    }
    named = {**drawn, "from_name": "kind", "type": "taxonomy", "value": {"taxonomy": [["Sky"]]}}
    task = {"data": {"image": "/a.png"}, "annotations": [{"result": [drawn, named]}, {"result": [drawn]}]}
    assert disagreement(task, config) == {"Sky": (1, 2)}


@pytest.mark.slow
def test_the_report_names_tasks_whose_annotators_disagree(project: StubLabelStudio, tmp_path: Any) -> None:
    options, page = ["--url", project.url, "--token", TOKEN], tmp_path / "effort.html"
    assert "disagree" not in CliRunner().invoke(main, ["report", "3", *options]).output
    project.annotate(1, [brush("r9", "Sky", square(0, 0))], parent_prediction=101)
    told = CliRunner().invoke(main, ["report", "3", "--html", str(page), *options])
    assert "annotators disagree: task 1: Cat in 1 of 2 annotations, Sky in 1 of 2" in told.output
    assert "Annotators disagree" in page.read_text(encoding="utf-8")
    found = json.loads(CliRunner().invoke(main, ["report", "3", "--json", *options]).stdout)
    assert found["disagreements"] == {"1": {"Cat": [1, 2], "Sky": [1, 2]}}


@pytest.mark.slow
def test_the_command_prints_a_table_json_and_a_page(project: StubLabelStudio, tmp_path: Any) -> None:
    options = ["--url", project.url, "--token", TOKEN]
    page = tmp_path / "effort.html"
    table = CliRunner().invoke(main, ["report", "3", "--html", str(page), *options])
    assert table.exit_code == 0, table.output
    assert "With nano-1 annotators changed 50 pixels per photo" in table.output
    assert "task 4: no prediction was there" in table.output
    assert "Edit effort: stub" in page.read_text(encoding="utf-8")
    printed = CliRunner().invoke(main, ["report", "3", "--json", *options])
    found = json.loads(printed.stdout)
    assert found["versions"][0]["figures"]["changed_pixels"]["value"] == pytest.approx(50)
    assert found["versions"][0]["classes"][0]["name"] == "Cat"


class TestPage:
    URL = "/report/3"

    def test_with_the_address_that_setup_told(self, project: StubLabelStudio, redis_db: str, store: Store) -> None:
        store.keep_project(PROJECT, Project(project.url, TOKEN))
        client = create_app(Settings.load({"LASAGNA_REDIS_URL": redis_db})).test_client()
        answer = client.get(self.URL)
        assert answer.status_code == 200
        assert answer.mimetype == "text/html"
        assert "<script" not in answer.text
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "With nano-1 annotators changed 50 pixels per photo" in answer.text

    def test_wants_the_password(self, project: StubLabelStudio, redis_db: str) -> None:
        environ = {"LASAGNA_LABEL_STUDIO_URL": project.url, "LASAGNA_LABEL_STUDIO_TOKEN": TOKEN}
        environ |= {"LASAGNA_REDIS_URL": redis_db, "LASAGNA_BASIC_AUTH": "ann:secret"}
        client = create_app(Settings.load(environ)).test_client()
        assert client.get(self.URL).status_code == 401
        assert client.get(self.URL, auth=("ann", "secret")).status_code == 200

    @pytest.mark.parametrize(
        ("environ", "words"),
        [
            pytest.param({}, "is not known", id="nobody-said-where"),
            pytest.param({"LASAGNA_LABEL_STUDIO_URL": "http://127.0.0.1:1"}, "cannot be reached", id="nobody-there"),
        ],
    )
    def test_says_what_is_wrong(self, redis_db: str, environ: dict[str, str], words: str) -> None:
        client = create_app(Settings.load({"LASAGNA_REDIS_URL": redis_db, **environ})).test_client()
        answer = client.get(self.URL)
        assert answer.status_code == 503
        assert words in answer.json["error"]


@pytest.mark.label_studio
def test_with_the_real_label_studio(label_studio: Any) -> None:
    """What it keeps of a prediction that was submitted: ids, the time, and which prediction was shown."""
    api, client = label_studio.api(), LabelStudio(label_studio.url, label_studio.login.token)
    number = api.create_project("effort", CONFIG)
    api.import_tasks(number, [{"data": {"image": "/data/upload/a.png"}} for _ in range(3)])
    tasks = [found.id for found in client.tasks(number)]
    shown = [
        brush("same", "Cat", square(0, 0)),
        brush("moved", "Dog", square(20, 20)),
        brush("gone", "Sky", square(0, 40)),
    ]
    submitted = [
        shown[0] | {"origin": "prediction"},
        brush("moved", "Dog", square(20, 22)),
        brush("new", "Sky", square(30, 0)),
    ]
    for task in tasks[:2]:
        old, new = (client.create_prediction(task, prediction(0, r, v)) for r, v in ((shown, "nano-1"), ([], "nano-2")))
        body: dict[str, Any] = {"result": submitted, "lead_time": 12.25, "was_cancelled": task == tasks[1]}
        body["parent_prediction"] = old
        assert new != old
        url = f"{label_studio.url}/api/tasks/{task}/annotations/"
        requests.post(url, json=body, headers=client.authorization(), timeout=60).raise_for_status()
    report = EffortReader().read(client, number)
    [version] = report.versions
    assert (version.version, version.tasks, report.skipped) == ("nano-1", 1, {})
    assert version.regions == RegionCounts(accepted=1, changed=1, added=1, deleted=1)
    assert version.figures["changed_pixels"].value == pytest.approx(40 + 200)
    assert version.figures["seconds"].value == pytest.approx(12.25)
    assert version.since > "2026"


# --- what the model was never taught ----------------------------------------------------------------------------------


def test_a_class_that_was_not_asked_is_no_miss() -> None:
    shown = [brush("a", "Cat", square(5, 5))]
    drawn = [brush("a", "Cat", square(5, 5)), brush("b", "Sky", square(20, 30)), brush("c", "Dog", square(20, 5))]
    given = task([prediction(1, shown)], [annotation(drawn)])
    asked: list[str] = []

    def unknown(version: str) -> list[str]:
        asked.append(version)
        return ["Sky", "Horse"]

    found = task_effort(given, PLAN, unknown=unknown)
    assert asked == ["nano-1"]
    assert found.unknown == ("Sky",)
    assert set(found.effort.classes) == {"Cat", "Dog"}
    assert (found.counts.accepted, found.counts.added) == (1, 1)
    counted = task_effort(given, PLAN)
    assert (counted.unknown, counted.counts.added) == ((), 2)
    # what it did draw, by a head that has learnt it, counts as ever
    removed = task([prediction(1, [*shown, brush("b", "Sky", square(20, 30))])], [annotation(shown)])
    assert task_effort(removed, PLAN, unknown=unknown).counts.deleted == 1

    [version] = summarise([found])
    assert version.unknown == {"Sky": 1}
    page = render_effort(EffortReport(3, "p", (version,)))
    assert "nano-1 was never taught, and in no figure of it is: Sky (drawn in 1 photo)." in page
