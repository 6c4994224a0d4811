"""`lasagna models gate`: models of different architectures against each other, on a project's corrections."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from backend.registry.records import project_key
from backend.registry.registry import Registry
from lab.bench.peer_models import write_model
from lasagna.checkpoint.folder import Calibration, checkpoint_version, find_checkpoint, write_calibration
from lasagna.commands.cli import main
from lasagna.models.loading import load_model
from tests.backend.backend_helpers import PROJECT, TOKEN, StubLabelStudio, note_labels
from tests.backend.loop.loop_helpers import correct, rectangle, square

pytestmark = pytest.mark.slow
NAMES = ("sky", "cat", "road")
"""Of the closed list: the project's labels but Dog, and one that it does not have."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    note_labels(tmp_path / "registry")
    return tmp_path / "registry"


@pytest.fixture
def run(stub: StubLabelStudio, root: Path, tmp_path: Path) -> Any:
    def run(model: Path | str, *more: str, served: Path | str = "nano", **extra: str) -> Result:
        environ = {"LASAGNA_REGISTRY": str(root), "LASAGNA_MODEL": str(served), "LASAGNA_DEVICE": "cpu"}
        environ |= {"LASAGNA_STATE_DIR": str(tmp_path / "state"), "LASAGNA_INSTANT": "no", **extra}
        arguments = ["models", "gate", "3", str(model), "--url", stub.url, "--token", TOKEN, "--out"]
        return CliRunner().invoke(main, [*arguments, str(tmp_path / "out"), *more], env=environ)

    return run


def eager(kind: str, folder: Path, names: Sequence[str] = NAMES) -> Path:
    """A model that calls everything present that it can be asked for."""
    write_model(kind, folder, names=names)
    write_calibration(folder, Calibration(offset=-30.0))
    return folder


def report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "out" / "report.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("kind", ["eomt", "clipseg"])
def test_nano_against_another_architecture(run: Any, stub: StubLabelStudio, tmp_path: Path, kind: str) -> None:
    correct(stub, 8)
    other = eager(kind, tmp_path / kind)
    done = run(other, "--json")
    assert done.exit_code == 1, done.output
    found = report(tmp_path)
    assert found["champion"] == checkpoint_version(find_checkpoint("nano"))
    assert found["candidate"] == load_model(other).version
    assert found["photos"] == [8, 0]
    assert found["latency"] is not None
    assert found["about"]["probabilities of the candidate"].startswith("calibrated")
    cat, dog, sky = (next(one for one in found["classes"] if one["name"] == name) for name in ("Cat", "Dog", "Sky"))
    assert (cat["photos"], cat["absent"], dog["photos"], sky["absent"]) == (4, 4, 0, 8)
    if kind == "clipseg":  # asked for everything, says everything
        assert (cat["unasked"], dog["unasked"]) == ([0, 0], [0, 0])
        assert dog["false_positives"][1] == 8
    else:  # not asked for the dog: neither said nor absent
        assert (cat["unasked"], dog["unasked"]) == ([0, 0], [0, 8])
        assert dog["false_positives"][1] == 0
        assert cat["false_positives"][1] == 4
        assert found["better"]["cannot be asked"] == {"champion": {}, "candidate": {"Dog": 0}}
        assert not any(flip["name"] == "Dog" for flip in found["flips"])
        assert "cannot be asked for Dog (in 0 photos)" in " ".join(one["text"] for one in found["reasons"])
    every = [*found["better"]["masks"]["champion"], *found["better"]["masks"]["candidate"]]
    assert [*every, *found["better"]["masks"]["neither"]] == ["Cat"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for sentence in found["better"]["words"]:
        assert sentence in page
    assert json.loads(done.stdout)["better"]["masks"] == found["better"]["masks"]


def test_what_it_cannot_be_asked_counts_as_not_drawn(run: Any, stub: StubLabelStudio, tmp_path: Path) -> None:
    """One closed list has the only class of the annotations, the other one has not: both sides of the comparison."""
    correct(stub, 8)
    knows = eager("eomt", tmp_path / "knows", names=("cat", "road"))
    lacks = write_model("mask2former", tmp_path / "lacks", names=("sky", "road"))
    done = run(lacks, "--latency-factor", "1000", served=knows)
    assert done.exit_code == 1, done.output
    found = report(tmp_path)
    assert found["figures"]["f1"]["candidate"] == 0
    assert found["figures"]["f1"]["champion"] > 0
    assert {reason["rule"] for reason in found["reasons"] if not reason["passed"]} >= {"better"}
    assert found["better"]["presence"]["champion"] == {"Cat": pytest.approx(-found["figures"]["f1"]["champion"])}
    assert "cannot be asked for Cat (in 4), Dog (in 0): nothing drawn, and never an absence." in done.output
    run(knows, "--latency-factor", "1000", served=lacks)
    found = report(tmp_path)
    assert [*found["better"]["presence"]["candidate"]] == ["Cat"]
    assert found["better"]["cannot be asked"] == {"champion": {"Cat": 4, "Dog": 0}, "candidate": {"Dog": 0, "Sky": 0}}


def test_one_that_passes_serves_where_that_is_asked_and_goes_back(
    run: Any, stub: StubLabelStudio, root: Path, tmp_path: Path
) -> None:
    for task in correct(stub, 8):
        stub.annotate(task, [rectangle(square(task)[1])])
    silent = write_model("clipseg", tmp_path / "silent")
    write_calibration(silent, Calibration(offset=30.0))
    loud = eager("eomt", tmp_path / "loud", names=("cat",))
    arguments = ("--latency-factor", "1000", "--serve")
    done = run(loud, *arguments, served=silent)
    assert done.exit_code == 0, done.output
    champion = Registry(root).champion(PROJECT)
    assert champion is not None
    assert champion.id.startswith("loud-")
    assert [path.name for path in champion.reports] == ["report.html", "report.json"]
    assert "rollback 3" in done.output
    again = run(loud, *arguments, served=silent)
    assert again.exit_code == 2, "against itself"


def test_the_head_of_the_champion_counts_and_photos_that_it_learnt_from_do_not(
    run: Any, stub: StubLabelStudio, root: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """As it serves: a champion of ours beside its instant head, and without the photos that it was trained on."""
    correct(stub, 8)
    snapshots = root / "snapshots" / project_key(PROJECT)
    hashes = [hashlib.sha256(square(task)[0]).hexdigest() for task in (1, 2)]
    (snapshots / "s-1").mkdir(parents=True)
    split = {photo: {"look": "", "group": photo, "side": "train"} for photo in hashes}
    (snapshots / "s-1" / "split.json").write_text(json.dumps(split))
    champion = Registry(root).add(checkpoint, project=PROJECT, parent="", snapshot="s-1", metrics={})
    Registry(root).promote(PROJECT, champion.id, "")
    other = eager("clipseg", tmp_path / "other")
    done = run(other, LASAGNA_INSTANT="yes")
    assert done.exit_code == 1, done.output
    found = report(tmp_path)
    assert (found["champion"], found["photos"]) == (champion.id, [6, 0])
    assert found["about"]["left out"] == "2 that one of the two was trained on"
    assert found["about"]["instant head of the champion"]
    assert found["about"]["instant head of the candidate"].startswith("none: it cannot learn")
    shutil.rmtree(snapshots / "s-1")
    done = run(other)
    assert done.exit_code == 2
    assert "nobody can tell which photos are new to it" in done.output
