"""`lasagna annotate` run again: after it was done, changed, killed or interrupted."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forked import ForkedCommand

from .made import CLASSES, NAMES, Run, computed, picture, read


@pytest.mark.slow
def test_same_content_is_computed_once(run: Run, folder: Path) -> None:
    assert computed(run(folder)) == len(NAMES) - 1


@pytest.mark.slow
def test_a_second_run_computes_nothing_and_loads_no_model(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("tasks.json", "coco.json", "gallery.html")}

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("lasagna.assistant.lasagna.Lasagna.from_pretrained", load)
    again = run(folder, "--batch-size", "2")
    assert (again.exit_code, computed(again)) == (0, 0)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before


@pytest.mark.slow
def test_changed_options_are_noticed_and_computed(run: Run, folder: Path, tmp_path: Path) -> None:
    run(folder)
    changed = run(folder, "--threshold", "0.001")
    assert "other threshold" in " ".join(changed.stderr.split())
    assert computed(changed) == len(NAMES) - 1
    assert all(row["present"] for image in read(tmp_path / "out" / "report.json")["images"] for row in image["classes"])
    back = run(folder)
    assert computed(back) == 0, "the results of the first options were kept"


@pytest.mark.slow
def test_a_new_and_a_removed_image(run: Run, folder: Path, tmp_path: Path) -> None:
    run(folder)
    (folder / "north" / "x.jpg").unlink()
    picture(20).save(folder / "new.png")
    (tmp_path / "out" / "masks" / "mine.txt").write_text("not written by us")
    again = run(folder)
    assert computed(again) == 1
    expected = ["a.jpg", "b.png", "new.png", *NAMES[3:]]
    assert [image["path"] for image in read(tmp_path / "out" / "report.json")["images"]] == expected
    assert not (tmp_path / "out" / "masks" / "north" / "x.png").exists()
    assert (tmp_path / "out" / "masks" / "mine.txt").exists()
    assert len(list((tmp_path / "out" / "gallery").glob("*.jpg"))) == len(expected) - 1


@pytest.mark.slow
def test_a_damaged_result_is_computed_again(run: Run, folder: Path, tmp_path: Path) -> None:
    run(folder)
    results = sorted((tmp_path / "out" / ".results").glob("*/*.json"))
    results[0].write_bytes(results[0].read_bytes()[:50])
    assert computed(run(folder)) == 1


@pytest.fixture
def many(tmp_path: Path) -> Path:
    photos = tmp_path / "many"
    photos.mkdir()
    for i in range(40):
        picture(i).save(photos / f"{i:02}.png")
    return photos


def answer_slowly() -> None:
    """A pause per image, so that the signal meets the run in its middle on any machine."""
    import lasagna.annotate.pipeline as batch

    answer = batch.answer_batch

    def answer_batch(*given: Any) -> Any:
        time.sleep(0.2)
        return answer(*given)

    batch.answer_batch = answer_batch


@contextlib.contextmanager
def started(photos: Path, out: Path, model: Path, least: int) -> Iterator[ForkedCommand]:
    """The command in a process of its own, at least `least` of whose results are there; its output is in OUT.log."""
    words = [str(photos), "--labels", ",".join(CLASSES), "--out", str(out), "--model", str(model), "--batch-size", "1"]
    log = out.with_suffix(".log")
    process = ForkedCommand(["annotate", *words, "--device", "cpu"], log, environ=os.environ, before=answer_slowly)
    try:
        deadline = time.monotonic() + 300
        while len(list((out / ".results").glob("*/*.json"))) < least:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "no results within five minutes"
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again(run: Run, many: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(many, out, model, least=5) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (out / ".results").glob("*/*.json")}
    assert 5 <= len(kept) < 40
    assert all(read(path)["classes"] for path in kept), "a result is complete or not there"
    assert not (out / "tasks.json").exists()

    again = run(many)
    assert (again.exit_code, computed(again)) == (0, 40 - len(kept))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    names = [f"{i:02}.png" for i in range(40)]
    assert [image["path"] for image in read(out / "report.json")["images"]] == names
    assert [task["data"]["image"].rsplit("/", 1)[1] for task in read(out / "tasks.json")] == names
    assert len(read(out / "coco.json")["images"]) == 40


@pytest.mark.slow
def test_a_second_run_is_refused_and_ctrl_c_says_how_to_go_on(
    run: Run, many: Path, model: Path, tmp_path: Path
) -> None:
    with started(many, tmp_path / "out", model, least=3) as process:
        second = run(many)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    output = (tmp_path / "out.log").read_text()
    assert second.exit_code == 2
    assert "another run is writing" in second.output
    assert "of 40 images are done and kept" in output
    assert "run the same command again" in output
    assert "Traceback" not in output
