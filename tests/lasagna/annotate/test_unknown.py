"""`lasagna annotate` with classes that the model was never taught: not drawn, not absent in any format, and listed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from lasagna.checkpoint.vocabulary import Taught, Vocabulary, write_vocabulary
from lasagna.commands.cli import main
from lasagna.formats.record import record_to_segmentation

from .made import CLASSES, Run, read

UNKNOWN = ["road", "dog"]
KNOWN = [name for name in CLASSES if name not in UNKNOWN]
ALL = ("--format", "label-studio,coco,masks,instances,yolo,voc", "--threshold", "0.001")


@pytest.fixture
def taught(model: Path, tmp_path: Path) -> Path:
    """The model of these tests, with a vocabulary of all classes but two."""
    folder = shutil.copytree(model, tmp_path / "taught")
    write_vocabulary(folder, Vocabulary({name: Taught(3) for name in KNOWN}))
    return folder


@pytest.fixture
def annotate(taught: Path, tmp_path: Path) -> Run:
    """Runs the command as `run` does, with that model."""

    def invoke(
        *arguments: str | Path,
        out: Path = tmp_path / "out",
        labels: str | None = ",".join(CLASSES),
        model: Path = taught,
    ) -> Result:
        words = [*map(str, arguments), "--out", str(out), "--model", str(model), "--labels", str(labels)]
        result = CliRunner().invoke(main, ["annotate", *words, "--device", "cpu"])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_every_format_leaves_them_out_and_says_so(annotate: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = annotate(folder, *ALL)
    assert result.exit_code == 0, result.output
    assert "was never taught 'road', 'dog': not drawn, and no absence" in result.stdout

    report = read(out / "report.json")
    assert report["unknown"] == UNKNOWN
    for image in report["images"]:
        said = {row["name"]: (row["present"], row["probability"]) for row in image["classes"]}
        assert list(said) == CLASSES
        assert [name for name, pair in said.items() if pair == (None, None)] == UNKNOWN

    coco = read(out / "coco.json")
    assert coco["info"]["unknown"] == UNKNOWN
    ids = {row["id"]: row["name"] for row in coco["categories"]}
    assert list(ids.values()) == CLASSES
    drawn = {ids[row["category_id"]] for row in coco["annotations"]}
    assert drawn == set(KNOWN), "the random model finds every class at this threshold"

    tasks = read(out / "tasks.json")
    for task in tasks:
        [prediction] = task["predictions"]
        for one in prediction["result"]:
            written = one["value"].get("brushlabels") or one["value"].get("choices")
            assert not set(UNKNOWN) & set(written)

    indices = {CLASSES.index(name) + 1 for name in UNKNOWN}
    for png in (out / "masks").rglob("*.png"):
        assert not indices & set(np.unique(np.asarray(Image.open(png))).tolist())
    assert not {row["class"] for png in read(out / "instances" / "instances.json") for row in png["instances"]} & set(
        UNKNOWN
    )
    written = {int(line.split()[0]) for path in (out / "yolo").rglob("*.txt") if path.name != "images.txt"
               for line in path.read_text().splitlines()}  # fmt: skip
    assert written
    assert not written & {CLASSES.index(name) for name in UNKNOWN}
    boxes = "".join(path.read_text() for path in (out / "voc").rglob("*.xml"))
    assert "<name>sky</name>" in boxes
    assert not any(f"<name>{name}</name>" in boxes for name in UNKNOWN)
    page = (out / "gallery.html").read_text(encoding="utf-8")
    assert page.count("2 not known to the model") == len(tasks)


def test_the_absent_list_holds_what_was_asked(annotate: Run, folder: Path, tmp_path: Path) -> None:
    assert annotate(folder / "a.jpg", "--threshold", "0.999999").exit_code == 0
    [task] = read(tmp_path / "out" / "tasks.json")
    [choices] = [one for one in task["predictions"][0]["result"] if one["type"] == "choices"]
    assert choices["value"]["choices"] == KNOWN
    assert choices["meta"] == {"text": ["not known to the model, and not looked for: road, dog"]}


def test_the_others_are_answered_as_without_them(annotate: Run, folder: Path, tmp_path: Path) -> None:
    assert annotate(folder).exit_code == 0
    assert annotate(folder, labels=",".join(KNOWN), out=tmp_path / "alone").exit_code == 0
    both = (read(tmp_path / out / "report.json")["images"] for out in ("out", "alone"))
    for mixed, alone in zip(*both, strict=True):
        assert [row for row in mixed["classes"] if row["name"] in KNOWN] == alone["classes"]


def test_what_was_kept_is_read_back(annotate: Run, folder: Path, tmp_path: Path) -> None:
    assert annotate(folder).exit_code == 0
    first = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json") if path.name != "report.json"}
    again = annotate(folder)
    assert "(0 now, 6 known before" in again.stdout
    assert {path: path.read_bytes() for path in first} == first
    kept = [path for path in (tmp_path / "out" / ".results").glob("*/*.json") if len(path.stem) == 32]
    assert len(kept) == 5, "one has the content of another"
    for path in kept:
        assert [one.name for one in record_to_segmentation(read(path)).unknown] == UNKNOWN


@pytest.mark.parametrize("how", ["option", "environment"])
def test_guessing_asks_for_all(
    annotate: Run, model: Path, folder: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "environment":
        monkeypatch.setenv("LASAGNA_GUESS_UNKNOWN", "yes")
    arguments = ("--guess-unknown",) if how == "option" else ()
    guessed = annotate(folder, *arguments)
    assert "never taught" not in guessed.stdout
    assert annotate(folder, model=model, out=tmp_path / "plain").exit_code == 0
    both = [read(tmp_path / out / "report.json") for out in ("out", "plain")]
    assert both[0]["unknown"] == both[1]["unknown"] == []
    assert [one["classes"] for one in both[0]["images"]] == [one["classes"] for one in both[1]["images"]]
    monkeypatch.delenv("LASAGNA_GUESS_UNKNOWN", raising=False)
    without = annotate(folder)
    assert "other guess_unknown" in " ".join(without.stderr.split())


def test_nothing_known_draws_nothing(annotate: Run, folder: Path, tmp_path: Path) -> None:
    result = annotate(folder, labels="kitchen,sink")
    assert result.exit_code == 0, result.output
    assert "'kitchen', 'sink'" in result.stdout
    assert read(tmp_path / "out" / "coco.json")["annotations"] == []
