"""Snapshots of a project, from a Label Studio that fails on demand. The real one is in test_label_studio_real.py."""

import json
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backend.loop import snapshot as snapshot_module
from backend.loop.snapshot import Snapshot, Snapshots
from backend.studio.client import LabelStudio, LabelStudioError
from backend.studio.images import ImageLimits
from lasagna.errors import DataError
from lasagna.labels.configuration import parse_label_config
from lasagna.labels.history import LabelHistory, Seen, label_set
from tests.backend.backend_helpers import CONFIG, TOKEN, StubLabelStudio
from tests.backend.loop.loop_helpers import correct, rectangle, square
from tests.forked import forks
from training.data.records import Record
from training.data.sources.label_studio import LabelStudioExport


@pytest.fixture
def snapshots(tmp_path: Path, stub: StubLabelStudio) -> Snapshots:
    client = LabelStudio(stub.url, TOKEN, timeout=5.0)
    seen = Seen(datetime(2000, 1, 1, tzinfo=UTC), label_set(parse_label_config(CONFIG).images))
    history = LabelHistory((seen,))
    most = {"max_pixels": 10_000_000}
    return Snapshots(tmp_path / "3", client, 3, ImageLimits(5.0, 10_000_000), most, history=history)


def records(snapshot: Snapshot) -> dict[str, tuple[str, ...]]:
    """Task -> the classes that are in it, of both sides."""
    found = {}
    for side in ("train", "holdout"):
        source = LabelStudioExport(snapshot.folder, side)
        for record in (source[i] for i in range(len(source))):
            present = {int(value) for value in set(record.read().flat) if value >= 0}
            found[record.image_id] = tuple(record.classes[i] for i in sorted(present))
            assert set(record.classes) == set(source.classes)  # every other label is a certain absence
    return found


def test_what_is_in_it(snapshots: Snapshots, stub: StubLabelStudio) -> None:
    correct(stub, 20)
    stub.add_tasks(5, first=100)  # nobody looked at these
    snapshot = snapshots.take()
    assert (snapshot.train, snapshot.holdout, snapshot.neither, snapshot.skipped) == (15, 5, (), {})
    assert records(snapshot) == {str(task): ("Cat",) if task % 2 else () for task in range(1, 21)}
    assert Snapshot.from_dict(json.loads(json.dumps(snapshot.as_dict()))) == snapshot
    text = (snapshot.folder / "train.json").read_text()
    assert "completed_by" not in text
    assert "lead_time" not in text


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ([{"label": "Cat", "was_cancelled": True}], None),
        ([{"label": "Cat"}, {"label": "Dog"}], ("Dog",)),
        ([{"label": "Cat", "ground_truth": True}, {"label": "Dog"}], ("Cat",)),
        ([{"label": "Cat"}, {"label": "Dog", "was_cancelled": True}], ("Cat",)),
    ],
    ids=["skipped", "the newest", "the ground truth", "skipped after it was annotated"],
)
def test_which_annotation_counts(
    snapshots: Snapshots, stub: StubLabelStudio, annotations: list[dict[str, object]], expected: tuple[str, ...] | None
) -> None:
    correct(stub, 8)
    [task] = stub.add_tasks(1, first=50)
    data, place = square(50)
    stub.images[task["data"]["image"]] = data
    for values in annotations:
        more = {key: value for key, value in values.items() if key != "label"}
        stub.annotate(50, [rectangle(place, str(values["label"]))], **more)
    assert records(snapshots.take()).get("50") == expected


def test_annotators_who_disagree_are_named(snapshots: Snapshots, stub: StubLabelStudio) -> None:
    correct(stub, 8)
    assert snapshots.take().disagreements == {}
    stub.annotate(1, [])  # task 1 shows a cat, says the other
    snapshot = snapshots.take()
    assert snapshot.disagreements == {"1": "Cat in 1 of 2 annotations"}
    assert Snapshot.from_dict(json.loads(json.dumps(snapshot.as_dict()))) == snapshot


def test_what_is_broken_is_left_out_and_named(snapshots: Snapshots, stub: StubLabelStudio) -> None:
    correct(stub, 14)
    address = {task["id"]: task["data"] for task in stub.tasks}
    stub.images[address[1]["image"]] = b"not an image"
    del stub.images[address[2]["image"]]
    address[3]["image"] = "http://127.0.0.1:1/elsewhere.png"
    stub.annotate(
        4,
        [
            {
                **rectangle(square(4)[1]),
                "from_name": "brush",
                "type": "brushlabels",
                "value": {"rle": [1, 2], "brushlabels": ["Cat"]},
            }
        ],
    )
    stub.annotate(5, [rectangle(square(5)[1], original_width=7)])
    snapshot = snapshots.take()
    assert snapshot.skipped is not None
    assert sorted(snapshot.skipped) == ["1", "2", "3", "5"]
    assert snapshot.left_out is not None
    [damaged] = snapshot.left_out["4"]  # its class alone is left out
    assert "a brush mask" in damaged
    assert "is not an image" in snapshot.skipped["1"]
    assert "cannot be fetched" in snapshot.skipped["2"]
    assert "is not fetched" in snapshot.skipped["3"]
    assert "drawn on 7" in snapshot.skipped["5"]
    found = {side: LabelStudioExport(snapshot.folder, side) for side in ("train", "holdout")}
    classes = {record.image_id: record.classes for source in found.values() for record in source}
    assert sorted(classes) == sorted(map(str, (4, *range(6, 15))))
    assert classes["4"] == ("Dog", "Sky")


@pytest.mark.slow
def test_label_studio_gone_is_no_snapshot_with_holes(
    snapshots: Snapshots, stub: StubLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.loop.snapshot.time.sleep", lambda seconds: None)
    correct(stub, 10)
    stub.status = {"/data": 503, "/api/current-user": 503}
    with pytest.raises(LabelStudioError, match="503"):
        snapshots.take()
    assert not list((tmp_path / "3").glob("*"))
    stub.status = {"/data/upload/3/4.png": 503}  # it answers, and fails on this photo for ever
    assert list(snapshots.take().skipped or ()) == ["4"]


@pytest.mark.slow
def test_content_addressed_and_immutable(snapshots: Snapshots, stub: StubLabelStudio) -> None:
    correct(stub, 10)
    first = snapshots.take()
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    fetched = len([path for _, path, _ in stub.requests if path.startswith("/data")])
    assert snapshots.take() == first
    stub.annotate(1, [rectangle(square(1)[1], "Dog")])
    second = snapshots.take()
    assert second.id != first.id
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before
    assert (
        len([path for _, path, _ in stub.requests if path.startswith("/data")]) == fetched
    )  # photos were here already
    photo = next((first.folder / "images").iterdir())
    assert os.stat(photo).st_ino == os.stat(second.folder / "images" / photo.name).st_ino


def test_two_tasks_with_one_photo_are_on_one_side(snapshots: Snapshots, stub: StubLabelStudio) -> None:
    correct(stub, 16)
    for task in stub.tasks[8:]:
        stub.images[task["data"]["image"]] = stub.images[stub.tasks[task["id"] - 9]["data"]["image"]]
    snapshot = snapshots.take()
    sides = [{t["id"] for t in json.loads((snapshot.folder / f"{s}.json").read_text())} for s in ("train", "holdout")]
    assert [len(side) for side in sides] == [8, 8]
    assert all(({task, task + 8} <= sides[0]) or ({task, task + 8} <= sides[1]) for task in range(1, 9))


def test_what_changed_since(snapshots: Snapshots, stub: StubLabelStudio) -> None:
    correct(stub, 12)
    assert snapshots.changed() == set(range(1, 13))
    snapshots.take()
    assert snapshots.changed() == set()
    stub.annotate(2, [rectangle(square(2)[1])])  # a second annotation
    stub.annotate(3, [], id=stub.tasks[2]["annotations"][0]["id"])  # the same one changed
    stub.tasks[3]["annotations"] = []  # deleted
    stub.tasks[4]["annotations"][0]["was_cancelled"] = True  # skipped
    stub.tasks[5]["updated_at"] = "2026-11-25T00:00:00.000000Z"  # a prediction was posted
    correct(stub, 1, first=40)
    assert snapshots.changed() == {2, 3, 4, 5, 40}


def take_until_killed(folder: Path, url: str, killer: str, where: str) -> None:
    """Takes a snapshot in a process of its own, and dies while it decodes the photo of a task, or reads its masks."""
    client = LabelStudio(url, TOKEN, timeout=5.0)
    load, read = snapshot_module.load_image, Record.read

    def load_or_die(data: bytes, name: str, **limits: int) -> Any:
        if where == "photo" and name.endswith(f"/{killer}.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return load(data, name=name, **limits)

    def read_or_die(record: Record) -> Any:
        if where == "masks" and record.image_id == killer:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(record)

    snapshot_module.load_image, Record.read = load_or_die, read_or_die  # type: ignore[assignment, method-assign]
    Snapshots(folder, client, 3, ImageLimits(5.0, 10_000_000), {"max_pixels": 10_000_000}).take()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["masks", "photo"])
def test_a_task_that_kills_the_process_is_found_and_left_out(
    snapshots: Snapshots, stub: StubLabelStudio, tmp_path: Path, where: str
) -> None:
    correct(stub, 12)
    codes = []
    for _ in range(5):
        process = forks.Process(target=take_until_killed, args=(tmp_path / "3", stub.url, "4", where))
        process.start()
        process.join(60)
        codes.append(process.exitcode)
        if codes[-1] == 0:
            break
    assert codes[:2] == [-9, -9]
    assert codes[-1] == 0
    snapshot = snapshots.take()
    assert list(snapshot.skipped or ()) == ["4"]
    assert "died 2 times" in (snapshot.skipped or {})["4"]
    assert snapshot.train + snapshot.holdout + len(snapshot.neither) == 11


def test_nothing_submitted(snapshots: Snapshots, stub: StubLabelStudio) -> None:
    stub.add_tasks(3)
    with pytest.raises(DataError, match="nobody has submitted"):
        snapshots.take()
    correct(stub, 4, first=10)
    with pytest.raises(DataError, match="corrections of 4 different photos"):
        snapshots.take()
