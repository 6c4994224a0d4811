"""`lasagna annotate`: nothing of the user's is overwritten, and a set is the old one or the new one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lasagna.annotate import swap
from lasagna.annotate.output import OutputFolder, Written

from . import killed_swap
from .made import CLASSES, NAMES, Run, computed, picture, read

ALL = ("--format", "label-studio,coco,masks,instances,yolo,voc")
OTHER = ",".join([*CLASSES[::-1], "cow"])


def everything(out: Path) -> dict[str, bytes]:
    """Every file of OUT but our notes; of links, where they lead."""
    return {
        str(path.relative_to(out)): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in sorted(out.rglob("*"))
        if (path.is_symlink() or path.is_file()) and ".results" not in path.parts
    }


def correct(path: Path) -> bytes:
    """Changes a mask as somebody would in a painting program."""
    with Image.open(path) as png:
        indices, colours = np.asarray(png).copy(), png.getpalette()
    indices[:10, :10] = 3
    corrected = Image.fromarray(indices, mode="P")
    corrected.putpalette(colours or [])
    corrected.save(path)
    return path.read_bytes()


# --- What somebody changed --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_corrected_files_are_kept_when_photos_come(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(folder, *ALL).exit_code == 0
    mask = correct(out / "masks" / "north" / "x.png")
    (out / "yolo" / "labels" / "north" / "x.txt").write_text("0 0 0 1 0 1 1\n")
    coco = read(out / "coco.json")
    coco["annotations"].pop()
    (out / "coco.json").write_text(json.dumps(coco))
    picture(20).save(folder / "new.png")

    again = run(folder, *ALL)
    assert again.exit_code == 1
    assert (out / "masks" / "north" / "x.png").read_bytes() == mask
    assert (out / "yolo" / "labels" / "north" / "x.txt").read_text() == "0 0 0 1 0 1 1\n"
    assert read(out / "coco.json") == coco
    assert {(file["name"], file["reason"]) for file in read(out / "report.json")["kept"]} == {
        (name, "changed since it was written") for name in ("masks/north/x.png", "yolo/labels/north/x.txt", "coco.json")
    }
    assert "kept as it is: masks/north/x.png: changed since it was written" in again.stderr
    assert "--overwrite" in again.stderr
    assert (out / "masks" / "new.png").exists(), "the others are written"
    assert len(read(out / "tasks.json")) == len(NAMES) + 1
    assert (out / "yolo" / "images.txt").read_text().count("\n") == len(NAMES) + 1

    assert run(folder, *ALL).exit_code == 1, "and again"
    assert (out / "masks" / "north" / "x.png").read_bytes() == mask
    told = run(folder, *ALL, "--overwrite")
    assert (told.exit_code, computed(told)) == (0, 0)
    assert (out / "masks" / "north" / "x.png").read_bytes() != mask
    assert len(read(out / "coco.json")["images"]) == len(NAMES) + 1
    assert read(out / "report.json")["kept"] == []


def test_own_files_in_the_output_folder_are_kept(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "masks" / "mine").mkdir(parents=True)
    Image.fromarray(np.full((32, 48), 7, np.uint8)).save(out / "masks" / "a.png")
    own = {
        "masks/a.png": (out / "masks" / "a.png").read_bytes(),
        "masks/mine/notes.txt": b"hello",
        "coco.json": b'{"images": []}',
        "label_config.xml": b"<View/>",
        "report.json": b"{}",
        "gallery.html": b"<p>mine</p>",
    }
    for name, data in own.items():
        (out / name).write_bytes(data)
    result = run(folder)
    assert result.exit_code == 1
    found = everything(out)
    assert {name: found[name] for name in own} == own
    for name in own:
        assert (f"{name}: not written by this command" in result.stderr) == (name != "masks/mine/notes.txt")
    assert "masks/b.png" in found
    assert len(read(out / "tasks.json")) == len(NAMES)


def test_own_masks_with_a_table_of_their_own(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    Image.fromarray(np.full((32, 48), 7, np.uint8)).save(out / "masks" / "mine.png")
    (out / "masks" / "classes.json").write_text('[{"index": 7, "name": "cow"}]')
    before = everything(out)
    result = run(folder, "--format", "masks,voc")
    assert result.exit_code == 1
    assert {name: data for name, data in everything(out).items() if name.startswith("masks")} == before
    assert "masks stays as it is as a whole: masks/classes.json is not written by this command" in result.stderr
    assert len(list((out / "voc").rglob("*.xml"))) == len(NAMES)
    assert run(folder, "--format", "masks", "--overwrite").exit_code == 0
    assert [row["name"] for row in read(out / "masks" / "classes.json")] == [None, *CLASSES]
    assert (out / "masks" / "mine.png").exists(), "nothing of ours goes there"


def test_a_corrected_file_of_a_photo_that_is_gone(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(folder, "--format", "masks").exit_code == 0
    mask = correct(out / "masks" / "a.png")
    picture(9).save(folder / "a.png")  # now both have their endings in their outputs' names
    (folder / "b.png").unlink()
    result = run(folder, "--format", "masks")
    assert result.exit_code == 1
    assert (out / "masks" / "a.png").read_bytes() == mask
    assert "masks/a.png: changed since it was written; its image is gone or has another name" in result.stderr
    assert (out / "masks" / "a.jpg.png").exists()
    assert not (out / "masks" / "b.png").exists()
    assert "Gone since the last run, or renamed: 1 of its images (b.png)" in result.stderr


# --- Sets with another meaning ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_other_labels_swap_the_set_whole(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(folder, *ALL, "--threshold", "0.001").exit_code == 0
    (out / "masks" / "notes.txt").write_text("mine")
    (out / "yolo" / "labels.cache").write_bytes(b"what YOLO's loader keeps: of the size of the labels")
    (folder / "a.jpg").unlink()
    result = run(folder, *ALL, "--threshold", "0.001", labels=OTHER)
    assert result.exit_code == 0, result.output
    assert run(folder, *ALL, "--threshold", "0.001", labels=OTHER, out=tmp_path / "fresh").exit_code == 0
    found, fresh = everything(out), everything(tmp_path / "fresh")
    assert found.pop("masks/notes.txt") == b"mine"
    assert found.keys() == fresh.keys()
    timed = {"report.json", "gallery.html"}
    assert {name for name in found if found[name] != fresh[name]} <= timed, "no half of the old labels is left"


@pytest.mark.slow
def test_other_labels_beside_corrections_are_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(folder, *ALL).exit_code == 0
    correct(out / "masks" / "a.png")
    Image.fromarray(np.zeros((32, 48), np.uint8)).save(out / "masks" / "drawn by hand.png")
    before = everything(out)
    for changes in ({"labels": OTHER}, {"labels": ",".join(CLASSES[::-1])}):
        result = run(folder, *ALL, **changes)  # type: ignore[arg-type]
        assert result.exit_code == 1
        assert "masks/a.png: changed since it was written" in result.stderr
        assert "masks/drawn by hand.png: not written by this command" in result.stderr
        assert "choose another --out, or write over them with --overwrite" in result.stderr
        assert everything(out) == before
    assert run(folder, *ALL).exit_code == 1, "under the same labels it goes on"
    assert run(folder, *ALL, "--overwrite", labels=OTHER).exit_code == 0
    assert len(read(out / "masks" / "classes.json")) == len(CLASSES) + 2


def test_other_parameters_and_a_corrected_instance_map(run: Run, folder: Path, tmp_path: Path) -> None:
    """Its numbers mean what the rows of instances.json say; masks mean the same under any threshold."""
    out = tmp_path / "out"
    assert run(folder, "--format", "masks,instances").exit_code == 0
    correct(out / "masks" / "a.png")
    assert run(folder, "--format", "masks", "--threshold", "0.001").exit_code == 1
    before = (out / "masks" / "a.png").read_bytes()
    Image.fromarray(np.ones((32, 48), np.uint16)).save(out / "instances" / "a.png")
    result = run(folder, "--format", "masks,instances", "--threshold", "0.001")
    assert result.exit_code == 1
    assert "instances/a.png: changed since it was written" in result.stderr
    assert (out / "masks" / "a.png").read_bytes() == before


@pytest.mark.slow
def test_nothing_is_touched_where_nothing_changes(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(folder, *ALL).exit_code == 0
    before = {path: path.lstat().st_mtime_ns for path in out.rglob("*") if ".results" not in path.parts}
    assert run(folder, *ALL).exit_code == 0
    after = {path: path.lstat().st_mtime_ns for path in out.rglob("*") if ".results" not in path.parts}
    assert {path.name for path in before if before[path] != after[path]} <= {"out", "report.json", "gallery.html"}
    assert not (out / ".results" / "next").exists()


@pytest.mark.slow
def test_files_of_an_earlier_version(run: Run, folder: Path, tmp_path: Path) -> None:
    """It noted names without hashes."""
    out = tmp_path / "out"
    assert run(folder, *ALL).exit_code == 0
    known = Written.load(out / ".results" / "written.json")
    (out / ".results" / "written.json").write_text(json.dumps(sorted(known.files)))
    (out / "yolo" / "images").unlink()
    (out / "yolo" / "images").symlink_to(folder)
    (out / ".results" / "options.json").unlink()
    shutil.rmtree(out / "instances")
    again = run(folder, *ALL)
    assert again.exit_code == 0, "what is as it would be written now is ours"
    assert os.readlink(out / "yolo" / "images") == "../../photos"

    (out / ".results" / "written.json").write_text(json.dumps(sorted(known.files)))
    other = run(folder, *ALL, labels=OTHER)
    assert other.exit_code == 1
    assert "written by an earlier version, which kept no record" in other.stderr
    assert run(folder, *ALL, "--overwrite", labels=OTHER).exit_code == 0


# --- Killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_every_step_of_putting_a_set_in_place(tmp_path: Path) -> None:
    """Whatever is on disk then is of one set in each folder; and the next run knows it and completes it."""
    steps = 0
    while True:
        out = tmp_path / f"{steps}"
        killed_swap.write(out, "a")
        (out / "one" / "mine.md").write_text("mine")
        command = [sys.executable, killed_swap.__file__, str(out), "b", str(steps)]
        status = subprocess.run(command, check=False, capture_output=True, text=True)
        found = everything(out)
        assert found.pop("one/mine.md") == b"mine"
        assert sorted(found) == sorted(killed_swap.NAMES)
        for top in ("one", "two"):
            letters = {data for name, data in found.items() if name.startswith(f"{top}/")}
            assert letters in ({b"a"}, {b"b"}), (steps, found)
        assert killed_swap.write(out, "b") == [], "no file of a killed run is taken for somebody's"
        assert set(everything(out).values()) == {b"b", b"mine"}
        if status.returncode == 0:
            break
        assert status.returncode == -signal.SIGKILL, status.stderr
        steps += 1
    assert steps > 10


@pytest.mark.slow
def test_killed_while_other_labels_are_computed(run: Run, folder: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(folder, *ALL).exit_code == 0
    before = everything(out)
    kill = (
        "import os, signal; import lasagna.annotate.export as export; append = export.Export.append\n"
        "count = [0]\n"
        "def counted(*a):\n"
        "    append(*a); count[0] += 1\n"
        "    if count[0] == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "export.Export.append = counted\n"
        "from lasagna.commands.cli import main; main()"
    )
    words = ["annotate", str(folder), "--labels", OTHER, "--out", str(out), "--model", str(model), "--device", "cpu"]
    assert subprocess.run([sys.executable, "-c", kill, *words, *ALL], check=False).returncode == -signal.SIGKILL
    assert everything(out) == before
    assert run(folder, *ALL, labels=OTHER).exit_code == 0
    assert len(read(out / "masks" / "classes.json")) == len(CLASSES) + 2


def test_what_somebody_saves_while_a_folder_is_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_swap.write(tmp_path, "a")
    exchange = swap._exchange

    def saved_meanwhile(one: Path, other: Path) -> None:
        if other.name == "one":
            (other / "a.txt").write_text("corrected")
            (other / "new.txt").write_text("new")
        exchange(one, other)

    monkeypatch.setattr(swap, "_exchange", saved_meanwhile)
    assert killed_swap.write(tmp_path, "b") == ["one/a.txt", "one/new.txt"]
    found = everything(tmp_path)
    assert (found["one/a.txt"], found["one/new.txt"], found["one/table"]) == (b"corrected", b"new", b"b")


@pytest.mark.parametrize("how", ["link", "refused", "no hard links", "without renameat2"])
def test_file_systems_that_cannot(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    killed_swap.write(out, "a")
    (out / "one" / "mine.md").write_text("mine")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    if how == "link":
        shutil.move(out / "one", tmp_path / "elsewhere")
        (out / "one").symlink_to(tmp_path / "elsewhere")
    elif how == "refused":
        monkeypatch.setattr(swap, "_exchange", refuse)
    elif how == "no hard links":
        monkeypatch.setattr(os, "link", refuse)
    else:
        monkeypatch.setattr(swap.ctypes, "CDLL", lambda *_, **__: object())
    assert killed_swap.write(out, "b") == []
    found = {name: (out / name).read_text() for name in (*killed_swap.NAMES, "one/mine.md")}
    assert found == {**dict.fromkeys(killed_swap.NAMES, "b"), "one/mine.md": "mine"}
    assert not (out / ".results" / "whole").exists() or not list((out / ".results" / "whole").iterdir())


def test_files_where_folders_have_to_be(tmp_path: Path) -> None:
    (tmp_path / "one" / "a.txt").mkdir(parents=True)
    (tmp_path / "one" / "a.txt" / "mine").write_text("mine")
    (tmp_path / "two").write_text("mine")
    kept = killed_swap.write(tmp_path, "b")
    assert set(kept) >= {"one", "two"}
    assert (tmp_path / "one" / "a.txt" / "mine").read_text() == (tmp_path / "two").read_text() == "mine"
    assert (tmp_path / "three.json").read_text() == "b"
    assert OutputFolder(tmp_path).before.files.keys() == {"three.json"}


# --- Photos that cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["unreadable", "damaged", "listed", "folder", "archive"])
def test_a_photo_that_cannot_be_read_keeps_its_answer(how: str, run: Run, folder: Path, tmp_path: Path) -> None:
    out, away = tmp_path / "out", tmp_path / "away"
    named: list[str | Path] = [folder]
    if how in ("listed", "folder"):
        lines = [str(folder / name) for name in NAMES] if how == "listed" else [str(folder)]
        (tmp_path / "list.txt").write_text("\n".join(lines))
        named = ["--list", tmp_path / "list.txt"]
    if how == "archive":
        shutil.make_archive(str(folder), "zip", folder)
        (tmp_path / "list.txt").write_text(f"{folder}.zip")
        named = ["--list", tmp_path / "list.txt"]
    assert run(*named, *ALL).exit_code == 0
    before = everything(out)
    if how == "unreadable":
        (folder / "a.jpg").unlink()
        (folder / "a.jpg").symlink_to(tmp_path / "nowhere")
    elif how == "damaged":
        (folder / "a.jpg").write_bytes(b"half a fi")
    elif how == "archive":
        os.rename(f"{folder}.zip", away)
    else:
        os.rename(folder, away)
    again = run(*named, *ALL)
    assert again.exit_code == 1
    failed = read(out / "report.json")["failures"]
    count = 1 if how in ("unreadable", "damaged") else len(NAMES)
    assert len(failed) == count
    assert all(failure["reason"].endswith("; its former answer is kept") for failure in failed)
    found = everything(out)
    same = [name for name in before if name not in ("report.json", "gallery.html")]
    assert {name for name in same if found.get(name) != before[name]} == set()
    assert len(read(out / "report.json")["images"]) == len(NAMES)
    assert f"{count} as before, since they cannot be read" in again.stdout
    if how != "damaged":
        if away.exists():
            os.rename(away, f"{folder}.zip" if how == "archive" else folder)
        else:
            (folder / "a.jpg").unlink()
            picture(0).save(folder / "a.jpg", quality=95)
        assert run(*named, *ALL).exit_code == 0


def test_nothing_can_be_read_and_nothing_is_known(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(folder, *ALL).exit_code == 0
    before = everything(out)
    (tmp_path / "list.txt").write_text("gone.jpg\nalso gone\n")
    result = run("--list", tmp_path / "list.txt", *ALL)
    assert result.exit_code == 1
    assert everything(out) == before, "an empty set is not put in place of one that is full"


def test_names_that_were_relative_to_another_folder(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(folder / "north", "--format", "masks").exit_code == 0
    mask = correct(out / "masks" / "x.png")
    moved = run(folder, "--format", "masks")
    said = " ".join(moved.stderr.split())
    assert f"Names are relative to {folder} now, and were to {folder / 'north'}" in said
    assert moved.exit_code == 1
    assert (out / "masks" / "x.png").read_bytes() == mask
    assert (out / "masks" / "north" / "x.png").exists()


def test_images_in_folders_of_the_output_are_named(run: Run, folder: Path) -> None:
    (folder / "masks").mkdir()
    picture(3).save(folder / "masks" / "a photo.png")
    for _ in range(2):
        result = run(folder, out=folder)
        assert result.exit_code == 0
        said = " ".join(result.stderr.split())
        assert f"passed over in {folder / 'masks'}, a folder of the output: a photo.png" in said
