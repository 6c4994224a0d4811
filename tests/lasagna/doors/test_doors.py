"""Answers in other tools' own types, read back by those tools."""

from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import supervision
from cvat_sdk import masks, models
from cvat_sdk.auto_annotation import annotate_task, driver
from PIL import Image

from lasagna import Lasagna
from lasagna.doors.cvat import CvatFunction, create
from lasagna.doors.datasets import answers_to_dataset
from lasagna.doors.supervision import segmentation_to_detections
from lasagna.errors import ConfigError, DataError
from lasagna.masks.segmentation import ClassAnswer, ClassQuery, Segmentation

SIZE = (40, 60)


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def answer() -> Segmentation:
    """Two parts of a ground, a small thing on it, an absent class, an unknown one, and one without a pixel."""
    return Segmentation(
        SIZE,
        (
            ClassAnswer("ground", 0.9, rectangle(20, 0, 40, 20) | rectangle(20, 30, 40, 60)),
            ClassAnswer("sky", 0.1, None),
            ClassAnswer("thing, small", 0.7, rectangle(25, 5, 30, 10)),
            ClassAnswer.unknown("otter"),
            ClassAnswer("dust", 0.6, rectangle(0, 0, 0, 0)),
        ),
    )


class Answering:
    """A model that gives one answer, and keeps what it was asked."""

    def __init__(self, answer: Segmentation) -> None:
        self.answer = answer
        self.asked: list[tuple[list[str], float | None]] = []

    def segment(self, image: Any, classes: list[ClassQuery], *, threshold: float | None = None) -> Segmentation:
        self.asked.append(([query.name for query in classes], threshold))
        return self.answer


def test_supervision_has_what_is_present(answer: Segmentation) -> None:
    found = segmentation_to_detections(answer)
    assert found.data["class_name"].tolist() == ["ground", "thing, small"]
    assert found.class_id.tolist() == [0, 2]
    assert found.confidence.tolist() == pytest.approx([0.9, 0.7])
    assert found.xyxy.tolist() == [[0, 20, 60, 40], [5, 25, 10, 30]]
    assert found.area.tolist() == [20 * 20 + 20 * 30, 25]
    assert np.array_equal(found.mask[0], answer["ground"].mask)
    drawn = supervision.MaskAnnotator().annotate(np.zeros((*SIZE, 3), np.uint8), found)
    assert drawn[30, 50].any()
    assert not drawn[5, 5].any()


def test_supervision_has_each_part(answer: Segmentation) -> None:
    found = segmentation_to_detections(answer, parts=True)
    assert sorted(map(tuple, found.xyxy.tolist())) == [(0, 20, 20, 40), (5, 25, 10, 30), (30, 20, 60, 40)]
    assert found[found.class_id == 0].area.sum() == answer["ground"].area


def test_supervision_has_nothing_where_nothing_is_there() -> None:
    assert len(segmentation_to_detections(Segmentation(SIZE, (ClassAnswer("sky", 0.1, None),)))) == 0


def run_cvat(monkeypatch: pytest.MonkeyPatch, function: Any, type: str, **options: Any) -> list[Any]:
    """The SDK's own driver on a task of one image, as a server would describe it; what it would upload."""
    names = ["thing, small", "ground", "sky", "otter", "dust"]
    labels = [
        models.Label(id=70 + i, name=name, type=type, attributes=[], sublabels=[]) for i, name in enumerate(names)
    ]
    media = SimpleNamespace(load_image=lambda: Image.new("RGB", SIZE[::-1]))
    task = SimpleNamespace(labels=labels, samples=[SimpleNamespace(frame_name="a.jpg", frame_index=4, media=media)])
    monkeypatch.setattr(driver, "TaskDataset", lambda *args, **more: task)
    sent: list[Any] = []

    def upload(action: str, id: int, *, patched_labeled_data_request: Any) -> None:
        sent.extend(patched_labeled_data_request.shapes)

    api = SimpleNamespace(partial_update_annotations=upload)
    client = SimpleNamespace(logger=SimpleNamespace(info=lambda *args: None), tasks=SimpleNamespace(api=api))
    annotate_task(client, 9, function, **options)
    return sent


CLASSES = [ClassQuery(name) for name in ("ground", "sky", "thing, small", "otter", "dust")]


def test_cvat_takes_masks(answer: Segmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Answering(answer)
    shapes = run_cvat(monkeypatch, CvatFunction(model, CLASSES), "mask")  # type: ignore[arg-type]
    assert [(shape.type.value, shape.label_id, shape.frame) for shape in shapes] == [("mask", 71, 4), ("mask", 70, 4)]
    decoded = masks.decode_mask(shapes[0].points, image_width=SIZE[1], image_height=SIZE[0])
    assert np.array_equal(decoded, answer["ground"].mask)
    assert model.asked == [([query.name for query in CLASSES], None)]


@pytest.mark.parametrize(("shape", "type", "convert"), [("polygon", "polygon", False), ("mask", "mask", True)])
def test_cvat_takes_polygons(
    answer: Segmentation, monkeypatch: pytest.MonkeyPatch, shape: str, type: str, convert: bool
) -> None:
    function = CvatFunction(Answering(answer), CLASSES, shape)  # type: ignore[arg-type]
    shapes = run_cvat(monkeypatch, function, "polygon" if shape == "polygon" else "any", conv_mask_to_poly=convert)
    assert [shape.type.value for shape in shapes] == ["polygon"] * 3
    assert [shape.label_id for shape in shapes] == [71, 71, 70]
    x, y = shapes[-1].points[::2], shapes[-1].points[1::2]
    assert (min(x), max(x), min(y), max(y)) == (5, 10, 25, 30)


@pytest.mark.parametrize(("given", "asked"), [(None, None), (0.0, None), (0.7, 0.7), (1.0, 1 - 1e-6)])
def test_cvats_threshold_is_the_models(
    answer: Segmentation, monkeypatch: pytest.MonkeyPatch, given: float | None, asked: float | None
) -> None:
    model = Answering(answer)
    run_cvat(monkeypatch, CvatFunction(model, CLASSES), "mask", conf_threshold=given)  # type: ignore[arg-type]
    assert model.asked[0][1] == asked


@pytest.mark.slow
def test_cvats_command_line_makes_it_by_name() -> None:
    function = create(labels="person,cat", model="nano", device="cpu")
    assert [(label.name, label.id, label.type) for label in function.spec.labels] == [
        ("person", 0, "mask"),
        ("cat", 1, "mask"),
    ]
    context = SimpleNamespace(conf_threshold=None, conv_mask_to_poly=False)
    assert isinstance(function.detect(context, Image.new("RGB", (64, 64))), list)
    with pytest.raises(ConfigError, match="shape is mask or polygon, not 'box'"):
        CvatFunction(Lasagna.random(), CLASSES, "box")


def test_datasets_has_a_row_for_each_photo(answer: Segmentation) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8))
    made = answers_to_dataset([(photo, answer), (photo, answer)])
    assert made.num_rows == 2
    row = made[1]
    assert np.array_equal(np.asarray(row["image"]), np.asarray(photo))
    label = np.asarray(row["label"])
    assert label.dtype == np.uint8
    assert (label[30, 50], label[27, 7], label[0, 0]) == (1, 3, 0)
    classes: datasets.ClassLabel = made.features["present"].feature
    assert classes.names == [query.name for query in CLASSES]
    assert classes.int2str(row["present"]) == ["ground", "thing, small", "dust"]
    assert row["probability"][:3] == pytest.approx([0.9, 0.1, 0.7])
    assert row["probability"][3] is None


def test_datasets_are_of_one_class_list(answer: Segmentation) -> None:
    photo = Image.new("RGB", SIZE[::-1])
    other = Segmentation(SIZE, (ClassAnswer("sky", 0.1, None),))
    with pytest.raises(DataError, match="photo 2 was asked for"):
        answers_to_dataset([(photo, answer), (photo, other)])
    with pytest.raises(DataError, match="at least one"):
        answers_to_dataset([])


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("supervision", lambda answer: segmentation_to_detections(answer)),
        ("datasets", lambda answer: answers_to_dataset([])),
        ("cvat_sdk.auto_annotation", lambda answer: CvatFunction(Lasagna.random(), CLASSES)),
    ],
)
def test_a_missing_package_is_named(
    answer: Segmentation, monkeypatch: pytest.MonkeyPatch, module: str, call: Any
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'lasagna-assist\["):
        call(answer)
