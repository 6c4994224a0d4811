"""Corrected photos in every form that is read, and `lasagna learn` and `lasagna annotate --corrected` on them."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lasagna import Lasagna
from lasagna.commands.annotate import annotate
from lasagna.errors import ConfigError, DataError
from lasagna.formats.png import class_table
from lasagna.instant.head import Head
from lasagna.instant.store import HeadStore
from lasagna.labels.history import LabelHistory, Seen
from lasagna.masks.conversions import mask_to_brush_rle, mask_to_coco_rle
from training.commands.learn import learn
from training.data.records import OTHER, UNKNOWN
from training.instant.corrected import read_corrected

NAMES = ("disc", "ground, wet", "nothing")
SIZE = (96, 128)


def truth(seed: int) -> np.ndarray:
    """A bright disc on dark ground, above a strip of neither: indices into `NAMES`, -1 neither."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = (y - rng.integers(25, 60)) ** 2 + (x - rng.integers(30, 100)) ** 2 < rng.integers(12, 20) ** 2
    labels = np.where(disc, 0, 1)
    labels[84:] = OTHER
    return labels


def photo(labels: np.ndarray, seed: int) -> Image.Image:
    colours = np.array([[230, 200, 60], [40, 60, 90], [0, 0, 0], [90, 140, 80]])
    noise = np.random.default_rng(seed).normal(size=(*SIZE, 3)) * 12
    return Image.fromarray((colours[labels] + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "day 2").mkdir(parents=True)
    for seed in range(8):
        photo(truth(seed), seed).save(folder / ("day 2" if seed > 5 else "") / f"{seed}.png")
    return folder


def name_of(seed: int) -> str:
    return f"day 2/{seed}" if seed > 5 else str(seed)


def write_masks(folder: Path, count: int) -> Path:
    (folder / "masks" / "day 2").mkdir(parents=True)
    for seed in range(count):
        Image.fromarray((truth(seed) + 1).astype(np.uint8)).save(folder / "masks" / f"{name_of(seed)}.png")
    (folder / "masks" / "classes.json").write_text(json.dumps(class_table(NAMES)))
    return folder


def write_coco(folder: Path, count: int) -> Path:
    folder.mkdir()
    annotations = [
        {"id": 10 * seed + index, "image_id": seed, "category_id": index + 1, "iscrowd": 0,
         "segmentation": mask_to_coco_rle(truth(seed) == index)}
        for seed in range(count) for index in (0, 1)
    ]  # fmt: skip
    content = {
        "images": [
            {"id": seed, "file_name": f"{name_of(seed)}.png", "height": SIZE[0], "width": SIZE[1]}
            for seed in range(count)
        ],
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(NAMES)],
        "annotations": annotations,
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return folder


def write_export(folder: Path, count: int) -> Path:
    folder.mkdir()
    labels = "".join(f'<Label value="{name}"/>' for name in NAMES)
    brush = f'<BrushLabels name="brush" toName="image">{labels}</BrushLabels>'
    (folder / "label_config.xml").write_text(f'<View><Image name="image" value="$image"/>{brush}</View>')
    tasks = []
    for seed in range(count):
        result = [
            {"id": f"{seed}{index}", "from_name": "brush", "to_name": "image", "type": "brushlabels",
             "original_width": SIZE[1], "original_height": SIZE[0],
             "value": {"format": "rle", "rle": mask_to_brush_rle(truth(seed) == index), "brushlabels": [NAMES[index]]}}
            for index in (0, 1)
        ]  # fmt: skip
        tasks.append(
            {
                "id": seed,
                "data": {"image": f"/data/local-files/?d=photos/{name_of(seed)}.png"},
                "annotations": [{"id": seed, "updated_at": f"2026-11-{seed % 9 + 10}T10:00:00Z", "result": result}],
            }
        )
    (folder / "export.json").write_text(json.dumps(tasks))
    seen = LabelHistory((Seen(datetime(2026, 11, 1, tzinfo=UTC), {"image": NAMES}),))
    (folder / "labels.json").write_text(json.dumps(seen.as_dict()))
    return folder


FORMS = {"masks": write_masks, "coco": write_coco, "export": write_export}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_masks(form: str, tmp_path: Path, photos: Path) -> None:
    source = read_corrected(FORMS[form](tmp_path / form, 8), [photos])
    assert tuple(source.classes) == NAMES
    assert len(source) == 8
    for seed in range(8):
        record = source[seed]
        assert record.image_path.name == f"{seed}.png"
        assert record.classes == NAMES
        assert np.array_equal(record.read()[0], truth(seed))


def test_what_an_export_does_not_know_is_undecided(tmp_path: Path, photos: Path) -> None:
    """Nobody used the label "nothing", and nobody noted that it stood in the configuration."""
    folder = write_export(tmp_path / "export", 4)
    (folder / "labels.json").unlink()
    source = read_corrected(folder, [photos])
    assert source.classes == NAMES
    assert [source[i].classes for i in range(4)] == [NAMES[:2]] * 4


def test_masks_from_annotate_are_read_back(tmp_path: Path, photos: Path) -> None:
    """What `lasagna annotate` writes can be corrected in place: photos in folders, labels with commas."""
    model = tmp_path / "model"
    Lasagna.random(seed=1).save_pretrained(model)
    labels = 'disc,"ground, wet",nothing'
    run(annotate, [photos, "--labels", labels, "--model", model, "--out", tmp_path / "out", "--format", "masks"])
    source = read_corrected(tmp_path / "out", [photos])
    assert [source[i].image_id for i in range(len(source))] == [name_of(seed) for seed in range(8)]


def test_an_unknown_index_is_undecided(tmp_path: Path, photos: Path) -> None:
    folder = write_masks(tmp_path / "masks", 1) / "masks"
    indices = (truth(0) + 1).astype(np.uint8)
    indices[:10] = 255
    Image.fromarray(indices).save(folder / "0.png")
    labels = read_corrected(folder, [photos])[0].read()[0]
    assert (labels[:10] == UNKNOWN).all()
    assert np.array_equal(labels[10:], truth(0)[10:])


def test_a_mask_is_not_its_own_photo(tmp_path: Path) -> None:
    folder = write_masks(tmp_path / "corrected", 2)
    with pytest.raises(DataError, match="no photo for 2 of 2 masks, first"):
        read_corrected(folder / "masks", [folder / "masks"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "found no JSON file"),
        ({"a.json": "[]", "b.json": "[]"}, r"found a\.json, b\.json: name the file itself"),
        ({"a.json": '{"x": 1}'}, "neither COCO nor an export"),
        ({"classes.json": "{}"}, "it needs a list of"),
        ({"classes.json": json.dumps(class_table(NAMES))}, "no masks"),
        ({"coco.json": '{"images": [], "annotations": [], "categories": []}'}, "lists no photo"),
    ],
    ids=["nothing", "two exports", "other json", "other classes", "no masks", "empty coco"],
)
def test_what_cannot_be_read_says_so(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_corrected(tmp_path)
    with pytest.raises(DataError, match="there is nothing"):
        read_corrected(tmp_path / "missing")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    Lasagna.random(seed=1).save_pretrained(folder)
    return folder


def run(command, arguments, code: int = 0):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_learn_writes_a_head_that_a_model_uses(tmp_path: Path, photos: Path, model: Path) -> None:
    corrected = write_masks(tmp_path / "corrected", 8)
    out = tmp_path / "head.safetensors"
    result = run(learn, [corrected, "--photos", photos, "--model", model, "--out", out])
    assert re.search(r"learnt from 8 photos, into .*; serves since correction 8: \+", result.output)
    taught = Lasagna.from_pretrained(model, head=out)
    assert taught.version.endswith("+h1")
    labels = truth(99)
    disc = taught.segment(photo(labels, 99), NAMES)["disc"].mask
    assert disc is not None
    assert ((labels == 0) & disc).sum() / ((labels == 0) | disc).sum() > 0.8


def test_a_store_computes_only_what_changed(tmp_path: Path, photos: Path, model: Path, monkeypatch) -> None:
    corrected = write_masks(tmp_path / "corrected", 6)
    arguments = [corrected, "--photos", photos, "--model", model, "--out", tmp_path / "head", "--store", tmp_path / "s"]
    observed: list[str] = []
    observe = Lasagna.observe

    def watched(self, image, masks, id, **options):
        observed.append(id)
        return observe(self, image, masks, id, **options)

    monkeypatch.setattr(Lasagna, "observe", watched)
    run(learn, arguments)
    assert observed == [str(seed) for seed in range(6)]
    run(learn, arguments)
    assert len(observed) == 6
    first = Head.load(tmp_path / "head")
    Image.fromarray((truth(5)[::-1] + 1).astype(np.uint8)).save(corrected / "masks" / "3.png")
    (corrected / "masks" / "0.png").unlink()
    run(learn, arguments)
    assert observed[6:] == ["3"]
    assert [known.id for known in HeadStore(tmp_path / "s").corrections] == ["1", "2", "4", "5", "3"]
    assert Head.load(tmp_path / "head").number == first.number + 1


@pytest.mark.slow
def test_a_folder_of_corrections_can_learn_more(tmp_path: Path, photos: Path, model: Path) -> None:
    store = tmp_path / "store"
    corrected = write_masks(tmp_path / "corrected", 5)
    run(learn, [corrected, "--photos", photos, "--model", model, "--out", tmp_path / "head", "--store", store])
    taught = Lasagna.from_pretrained(model, head=store)
    decision = taught.learn(photo(truth(20), 20), {"disc": truth(20) == 0, "ground, wet": truth(20) == 1})
    assert decision.corrections == 6
    assert len(HeadStore(store).corrections) == 5
    alone = Lasagna.from_pretrained(model, head=tmp_path / "head")
    with pytest.raises(ConfigError, match="came without its corrections"):
        alone.learn(photo(truth(20), 20), {"disc": truth(20) == 0})


def test_a_photo_that_cannot_be_used_is_left_out(tmp_path: Path, photos: Path, model: Path) -> None:
    corrected = write_masks(tmp_path / "corrected", 6)
    (photos / "2.png").write_bytes(b"no photo")
    Image.fromarray(np.ones((5, 5), np.uint8)).save(corrected / "masks" / "4.png")
    result = run(learn, [corrected, "--photos", photos, "--model", model, "--out", tmp_path / "head"], code=1)
    assert "left out: 2: " in result.output
    assert "left out: 4: " in result.output
    assert "make them of one size" in result.output
    assert "learnt from 4 photos" in result.output


def test_a_label_is_learnt_under_the_name_that_is_asked(tmp_path: Path, photos: Path, model: Path) -> None:
    corrected = write_masks(tmp_path / "corrected", 3)
    names = tmp_path / "names.txt"
    names.write_text("Scheibe = disc\nground, wet\n")
    run(learn, [corrected, "--photos", photos, "--model", model, "--out", tmp_path / "h", "--labels-file", names])
    assert set(Head.load(tmp_path / "h").names) == {"", "Scheibe", "ground, wet"}


@pytest.mark.slow
def test_annotate_uses_corrections_at_once(tmp_path: Path, photos: Path, model: Path) -> None:
    corrected = write_masks(tmp_path / "corrected", 6)
    out = tmp_path / "out"
    labels = 'disc,"ground, wet",nothing'
    arguments = [photos, "--labels", labels, "--model", model, "--out", out, "--format", "masks,label-studio"]
    run(annotate, arguments)
    before = np.asarray(Image.open(out / "masks" / "day 2" / "7.png"))
    result = run(annotate, [*arguments, "--corrected", corrected])
    assert "learnt from 6 corrected photos; serves since correction 6" in result.output
    after = np.asarray(Image.open(out / "masks" / "day 2" / "7.png"))
    wrong = [(indices != truth(7) + 1).mean() for indices in (before, after)]
    assert wrong[1] < 0.05 < wrong[0]
    versions = {task["predictions"][0]["model_version"] for task in json.loads((out / "tasks.json").read_text())}
    assert len(versions) == 1
    assert re.fullmatch(r".+\+h1~[0-9a-f]{6}", versions.pop())
    again = run(annotate, [*arguments, "--corrected", corrected])
    assert "8 images annotated (0 now, 8 known" in again.output


def test_annotate_takes_a_head(tmp_path: Path, photos: Path, model: Path) -> None:
    corrected = write_masks(tmp_path / "corrected", 6)
    head = tmp_path / "head.safetensors"
    run(learn, [corrected, "--photos", photos, "--model", model, "--out", head])
    arguments = [photos, "--labels", "disc", "--model", model, "--out", tmp_path / "out", "--head", head]
    run(annotate, arguments)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["options"]["model_version"].endswith("+h1")
    result = run(annotate, [*arguments, "--corrected", corrected], code=2)
    assert "give one of them" in result.output


def test_an_output_that_cannot_be_written_says_so(tmp_path: Path, photos: Path, model: Path) -> None:
    corrected = write_masks(tmp_path / "corrected", 2)
    (tmp_path / "file").write_text("")
    arguments = [corrected, "--photos", photos, "--model", model, "--out", tmp_path / "file" / "head"]
    result = CliRunner().invoke(learn, [str(argument) for argument in arguments])
    assert "choose another --out" in str(result.exception)
