"""`lasagna annotate`: what fails alone, and what cannot be started."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lasagna.commands.cli import main

from .made import NAMES, Run, computed, picture, read


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good files in odd modes, and bad ones."""
    photos = tmp_path / "mixed"
    photos.mkdir()
    photo = picture(1)
    photo.convert("P").save(photos / "palette.png")
    photo.convert("CMYK").save(photos / "cmyk.jpg")
    photo.convert("RGBA").save(photos / "rgba.png")
    Image.fromarray(np.asarray(photo.convert("L"), dtype=np.uint16) * 257).save(photos / "grey16.png")
    photo.save(photos / "animated.gif", save_all=True, append_images=[picture(2), picture(3)])
    Image.new("RGB", (1, 1)).save(photos / "one.png")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.save(photos / f"exif{orientation}.jpg", exif=exif)
    photo.save(photos / "whole.jpg", quality=95)
    (photos / "cut.jpg").write_bytes((photos / "whole.jpg").read_bytes()[:700])
    (photos / "text.jpg").write_text("I am not a photo")
    (photos / "empty.png").write_bytes(b"")
    return photos


@pytest.mark.slow
def test_broken_files_fail_alone(run: Run, mixed: Path, tmp_path: Path) -> None:
    result = run(mixed)
    assert result.exit_code == 1
    report = read(tmp_path / "out" / "report.json")
    reasons = {failure["path"]: failure["reason"] for failure in report["failures"]}
    assert set(reasons) == {"cut.jpg", "text.jpg", "empty.png"}
    assert "damaged or incomplete" in reasons["cut.jpg"]
    assert "not an image" in reasons["text.jpg"]
    assert "empty" in reasons["empty.png"]
    assert all(reason in result.stderr for reason in reasons.values())
    sizes = {image["path"]: (image["width"], image["height"]) for image in report["images"]}
    assert len(sizes) == 15
    assert sizes["one.png"] == (1, 1)
    assert [sizes[f"exif{i}.jpg"] for i in range(1, 9)] == [(48, 32)] * 4 + [(32, 48)] * 4
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert all(name in page for name in reasons)

    (mixed / "cut.jpg").write_bytes((mixed / "whole.jpg").read_bytes())
    (mixed / "text.jpg").unlink()
    (mixed / "empty.png").unlink()
    repaired = run(mixed)
    assert (repaired.exit_code, computed(repaired)) == (0, 0), "what was good is not computed again"


@pytest.mark.slow
def test_max_failures(run: Run, mixed: Path, tmp_path: Path) -> None:
    stopped = run(mixed, "--max-failures", "1", "--batch-size", "1")
    assert stopped.exit_code == 1
    assert "2 files failed, more than --max-failures 1 allows" in stopped.output
    assert "cut.jpg" in stopped.output
    assert not (tmp_path / "out" / "tasks.json").exists()
    assert run(mixed, "--max-failures", "3").exit_code == 1
    assert len(read(tmp_path / "out" / "tasks.json")) == 15


def test_an_image_that_the_model_fails_on_takes_no_other_down(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lasagna.assistant.lasagna import Lasagna

    answer = Lasagna.segment_batch

    def segment_batch(self: Lasagna, images: list[Image.Image], *rest: Any, **options: Any) -> Any:
        if any(np.array_equal(np.asarray(image), bad) for image in images):
            raise RuntimeError("out of memory")
        return answer(self, images, *rest, **options)

    with Image.open(folder / "b.png") as photo:
        bad = np.asarray(photo.convert("RGB"))
    monkeypatch.setattr(Lasagna, "segment_batch", segment_batch)
    result = run(folder, "--batch-size", "3")
    assert result.exit_code == 1
    report = read(tmp_path / "out" / "report.json")
    assert {failure["path"] for failure in report["failures"]} == {"b.png", "south/copy of b.png"}
    assert all("out of memory" in failure["reason"] for failure in report["failures"])
    assert len(report["images"]) == len(NAMES) - 2


def test_folder_that_may_not_be_read_is_a_failure(run: Run, folder: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every folder; test_image tries a file as another user")
    (folder / "south").chmod(0)
    result = run(folder)
    (folder / "south").chmod(0o755)
    assert result.exit_code == 1
    assert "south" in read(tmp_path / "out" / "report.json")["failures"][0]["path"]


@pytest.mark.parametrize(
    ("arguments", "labels", "says"),
    [
        (["photos"], None, "no classes: give one of --labels, --labels-file and --label-config"),
        (["photos", "--labels-file", "x.txt"], "a", "classes in several ways"),
        (["photos"], "", "give at least one label"),
        (["photos"], " , ", "give at least one label"),
        (["photos"], 'sky,"road', "double quotes"),
        (["photos"], "bell\a", "Label Studio cannot store"),
        (["photos", "--labels-file", "x.txt"], None, "x.txt cannot be read"),
        (["photos", "--format", "tiff"], "a", "tiff is no format"),
        (["photos", "--format", ","], "a", "nothing is no format"),
        (["photos", "--threshold", "2"], "a", "0<x<1"),
        (["empty"], "a", "it is empty"),
        (["texts"], "a", "found 2 x .txt"),
        (["nothing"], "a", "there is no file or folder 'nothing'"),
        (["photos/*.bmp"], "a", "no file matches the pattern"),
        (["photos", "--image-root", "empty"], "a", "is not below the image root"),
        ([], "a", "Missing argument"),
    ],
)
def test_what_cannot_be_started_says_why(
    arguments: list[str], labels: str | None, says: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "empty", "texts"):
        (tmp_path / name).mkdir()
    picture(1).save(tmp_path / "photos" / "a.png")
    for name in "ab":
        (tmp_path / "texts" / f"{name}.txt").write_text(name)
    result = run(*arguments, labels=labels)
    assert result.exit_code == 2
    assert says in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "out" / "report.json").exists()


def test_an_unknown_checkpoint(run: Run, folder: Path) -> None:
    result = CliRunner().invoke(
        main, ["annotate", str(folder), "--labels", "a", "--out", str(folder / "out"), "--model", "nanno"]
    )
    assert result.exit_code == 2
    assert "nanno" in result.output
