"""`lasagna labels`: what stood when, and what a label is called now."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from backend.commands.labels import labels
from backend.instant.changes import EVERYTHING, Changes
from backend.queue.store import Project, Store
from backend.registry.label_histories import LabelHistories
from lasagna.commands.cli import main
from lasagna.errors import ConfigError
from lasagna.labels.configuration import parse_label_config
from lasagna.labels.history import LabelHistory
from tests.backend.backend_helpers import PROJECT, TOKEN, StubLabelStudio


def config_of(*names: str) -> str:
    found = "".join(f'<Label value="{name}"/>' for name in names)
    return f"""<View><Image name="image" value="$image"/>
    <RectangleLabels name="rect" toName="image">{found}</RectangleLabels></View>"""


def box(label: str) -> dict[str, Any]:
    value = {"x": 0, "y": 0, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": [label]}
    about = {"id": label, "from_name": "rect", "to_name": "image", "type": "rectanglelabels"}
    return {**about, "original_width": 64, "original_height": 48, "value": value}


@pytest.fixture
def histories(stub: StubLabelStudio, store: Store, redis_db: str, tmp_path: Path, monkeypatch: Any) -> LabelHistories:
    """Of a project in which `sky` was renamed to `heaven` and `dog` removed; three tasks are annotated."""
    found = LabelHistories(tmp_path / "registry")
    for day, names in ((1, ("sky", "cat", "dog")), (2, ("heaven", "cat"))):
        found.note(PROJECT, parse_label_config(config_of(*names)).images, datetime(2026, 1, day, 12, tzinfo=UTC))
    stub.label_config = config_of("heaven", "cat")
    stub.add_tasks(3)
    stub.annotate(1, [box("sky"), box("sky") | {"id": "other"}, box("cat")])
    stub.annotate(2, [box("sky"), box("kitten")])
    stub.annotate(3, [box("cat")])
    store.keep_project(PROJECT, Project(stub.url, TOKEN))
    monkeypatch.setenv("LASAGNA_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("LASAGNA_REDIS_URL", redis_db)
    monkeypatch.setenv("LASAGNA_LABEL_STUDIO_URL", stub.url)
    monkeypatch.setenv("LASAGNA_LABEL_STUDIO_TOKEN", TOKEN)
    return found


def run(*arguments: str) -> Result:
    found = CliRunner().invoke(labels, list(arguments))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def test_list(histories: LabelHistories) -> None:
    histories.rename(PROJECT, "sky", "heaven")
    said = run("list", "3").stdout
    for words in ("cat, dog, sky", "+ heaven, - dog, - sky", "'sky' is read as 'heaven'", "'kitten'"):
        assert words in said, words
    assert "'sky'  " not in said, "it is explained"
    kept = json.loads(run("list", "3", "--json").stdout)
    assert LabelHistory.from_dict(kept) == histories.of(PROJECT)


def test_list_of_an_unknown_project(histories: LabelHistories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LASAGNA_LABEL_STUDIO_URL")
    said = run("list", "4").stdout
    assert "no label set of project 4 was seen yet" in said
    assert "what annotations use is not looked at" in said


@pytest.mark.parametrize("command", ["labels list 3 --json", "report 3 --json", "export 3 --json --out"])
def test_between_an_upgrade_and_the_first_restart(
    histories: LabelHistories, stub: StubLabelStudio, tmp_path: Path, command: str
) -> None:
    """The history is still kept by the project's number, as 1.0 did: what is said of it is the same."""
    about = {"id": 99, "task": 1, "model_version": "tiny-1", "created_at": "2026-11-23T00:00:00Z", "score": 0.5}
    stub.predictions.append({**about, "result": [box("sky")]})
    histories.rename(PROJECT, "sky", "heaven")
    folder, said = tmp_path / "registry" / "labels", []
    for turn in ("moved", "left"):
        if turn == "left":
            (folder / f"{PROJECT}.json").rename(folder / "3.json")
        out = [str(tmp_path / turn)] if command.endswith("--out") else []
        found = CliRunner().invoke(main, [*command.split(), *out])
        assert isinstance(found.exception, SystemExit | None), found.exception
        said.append(found.stdout)
    assert said[0] == said[1]
    assert "heaven" in said[1]
    assert [path.name for path in folder.glob("*.json")] == [f"{PROJECT}.json"]


def test_what_is_left_waits_where_redis_is_gone(
    histories: LabelHistories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis may know whose it is: without it nothing is said that may be wrong."""
    folder = tmp_path / "registry" / "labels"
    (folder / f"{PROJECT}.json").rename(folder / "3.json")
    monkeypatch.setenv("LASAGNA_REDIS_URL", "redis://127.0.0.1:9/0")
    found = CliRunner().invoke(main, ["report", "3"])
    assert found.exit_code
    assert "Redis at redis://127.0.0.1:9/0 does not answer" in found.output
    assert (folder / "3.json").exists()


def test_rename(histories: LabelHistories, store: Store) -> None:
    said = run("rename", "3", "sky", "heaven").stdout
    assert "'sky' is read as 'heaven' now: 3 regions in 2 annotated tasks" in said
    assert 'give the label hint="sky"' in said
    assert "lasagna prelabel 3 --dry-run" in said
    assert histories.renamed(PROJECT) == {"sky": "heaven"}
    assert EVERYTHING in Changes(store).waiting(PROJECT), "the instant head reads the annotations again"


def test_rename_of_what_only_annotations_know(histories: LabelHistories) -> None:
    """It was renamed before the project was connected."""
    assert "1 regions in 1 annotated tasks" in run("rename", "3", "kitten", "cat").stdout


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("cat", "heaven", "the label 'cat' still stands in the labelling configuration; rename it in Label Studio"),
        ("sky", "himmel", "the labelling configuration has no label 'himmel'; it has 'heaven', 'cat'"),
        ("tree", "cat", "there was no label 'tree': .* do not stand any more: 'dog', 'kitten', 'sky'"),
        ("heaven", "heaven", "still stands"),
    ],
)
def test_what_cannot_have_been_renamed(histories: LabelHistories, old: str, new: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run("rename", "3", old, new)
    assert histories.renamed(PROJECT) == {}


def test_forget(histories: LabelHistories, store: Store) -> None:
    run("rename", "3", "sky", "heaven")
    assert "'sky' is not read as 'heaven' any more" in run("forget", "3", "sky").stdout
    assert histories.renamed(PROJECT) == {}
    with pytest.raises(ConfigError, match="known: none"):
        run("forget", "3", "sky")


def test_without_redis(histories: LabelHistories, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said is kept; the head reads the annotations later."""
    monkeypatch.setenv("LASAGNA_REDIS_URL", "redis://127.0.0.1:1/0")
    assert "reads the annotations again after the next correction" in run("rename", "3", "sky", "heaven").output
    assert histories.renamed(PROJECT) == {"sky": "heaven"}


def test_help() -> None:
    for command in ((), ("list",), ("rename",), ("forget",)):
        assert "lasagna labels " in run(*command, "--help").output
