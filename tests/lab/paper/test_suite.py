"""`lasagna evaluate SUITE`: parts that are computed once, and the paper's tables with ours beside."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from lab.paper.published import TABLE_1, TABLE_4, TABLES
from lab.paper.suite import Runner, SuitePart, read_suite
from lab.paper.suite_tables import beside_paper
from lasagna.commands.cli import main
from lasagna.errors import ConfigError

SUITES = sorted((Path(__file__).parents[3] / "lab" / "paper" / "evaluations").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one data set, `farm`: three photos of two dogs on grass, in the last one a cow too."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "farm"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.json").write_text(json.dumps({"classes": ["grass", "dog", "cow"], "background_index": None}))
    (folder / "val.txt").write_text("0\n1\n2\n")
    for i in range(3):
        mask = np.zeros((40, 60), np.uint8)
        mask[20:30, 5:15] = mask[10:30, 40:55] = 1
        if i == 2:
            mask[:8, 20:30] = 2
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
        Image.fromarray(np.dstack([mask * 100] * 3)).save(folder / "images" / f"{i}.jpg")
    return root


@pytest.fixture
def suite_file(data: Path, tmp_path: Path, random_checkpoint: Path) -> Path:
    values = {
        "output": str(tmp_path / "out"),
        "data": str(data),
        "models": {
            "tiny": str(random_checkpoint),
            "by one": {"checkpoint": str(random_checkpoint), "kind": "one_by_one"},
        },
        "closed_set": ["farm"],
        "generalised": {"farm": {"limit": 2}},
        "chunk_sizes": {"sets": ["farm"], "sizes": ["N", "1"]},
    }
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_parts_are_grouped_by_model(suite_file: Path) -> None:
    parts = Runner(read_suite(suite_file)).parts
    assert parts == [
        SuitePart("closed_set", "tiny", "farm"),
        SuitePart("chunk_sizes", "tiny", "farm", "N"),
        SuitePart("chunk_sizes", "tiny", "farm", "1"),
        SuitePart("generalised", "tiny", "farm"),
        SuitePart("closed_set", "by one", "farm"),
        SuitePart("generalised", "by one", "farm"),
    ]
    assert len({part.file for part in parts}) == 6


def test_a_part_is_computed_once_and_again_when_what_it_depends_on_changes(
    suite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = read_suite(suite_file)
    runner, part = Runner(suite, device="cpu"), SuitePart("closed_set", "tiny", "farm")
    assert runner.finished(part) is None
    assert runner.length(part) == 3
    seen: list[None] = []
    figures = runner.run(part, lambda: seen.append(None))
    assert len(seen) == figures["images"] == 3
    again = Runner(read_suite(suite_file))
    monkeypatch.setattr(again, "_load", lambda part: pytest.fail("a finished part loads no model"))
    assert again.finished(part) == figures
    assert list(again.results()) == [(part, figures)]
    assert Runner(read_suite(suite_file, ["limit=2"])).finished(part) is None
    assert Runner(read_suite(suite_file, ["closed_set={farm: {limit: 2}}"])).finished(part) is None
    other = "models={tiny: {checkpoint: nano}}"
    assert Runner(read_suite(suite_file, [other])).finished(part) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("models={}", "models: dictionary should have at least 1 item"),
        ("modles=1", r"modles: unknown key; did you mean models\?"),
        ("limit=0", "limit: should be greater than or equal to 1, found 0"),
        ("closed_set={farm: {spilt: val}}", r"closed_set\.farm\.spilt: unknown key; did you mean split\?"),
        ("chunk_sizes={sets: [farm], sizes: [N/0]}", "'N/0' is no chunk size"),
        ("models={a: {checkpoint: nano, kind: magic}}", r"models\.a\.kind: should be 'lasagna', "),
        ("seeds", "changes nothing: write key=value"),
    ],
)
def test_a_suite_that_is_wrong_says_where(suite_file: Path, change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_suite(suite_file, [change])


def test_all_errors_of_a_suite_come_at_once_with_their_lines(suite_file: Path) -> None:
    suite_file.write_text(suite_file.read_text() + "limit: 0\nlimit: -1\nclosed: [farm]\n")
    with pytest.raises(ConfigError, match=r"suite\.yaml: 3 errors") as error:
        read_suite(suite_file)
    for words in ("limit: written twice", "limit: should be greater", "closed: unknown key; did you mean closed_set?"):
        assert any(words in line and line.startswith("  suite.yaml:") for line in str(error.value).splitlines())


@pytest.mark.slow
def test_all_that_is_missing_is_listed_before_anything_runs(suite_file: Path) -> None:
    changes = ["models={a: nowhere}", "closed_set=[farm, elsewhere]", "open_set={ade20k: }"]
    with pytest.raises(ConfigError) as error:
        Runner(read_suite(suite_file, changes)).check()
    text = str(error.value)
    assert "unknown checkpoint 'nowhere'" in text
    assert "no reader is called 'elsewhere'; give `path` or `reader`" in text
    assert "ade20k" in text


def test_a_specialist_is_measured_on_its_own_classes_alone(suite_file: Path, tmp_path: Path) -> None:
    changes = [f"models={{spec: {{checkpoint: {tmp_path}/specialist, kind: specialist}}}}"]
    runner = Runner(read_suite(suite_file, changes))
    assert runner.parts == [SuitePart("closed_set", "spec", "farm")]
    with pytest.raises(ConfigError, match=r"specialist/farm/specialist\.pt is missing"):
        runner.check()


def run(*args: object) -> Any:
    return CliRunner().invoke(main, ["evaluate", *map(str, args), "--device", "cpu"])


@pytest.mark.slow
def test_the_command_writes_tables_figures_and_plots(suite_file: Path, tmp_path: Path) -> None:
    document = tmp_path / "results.md"
    names = ("table-1", "table-4", "table-6", "presence")
    document.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in names))
    result = run(suite_file, "--document", document)
    assert result.exit_code == 0, result.output
    assert "| ours | by one |" in result.stdout
    assert "| vision-language assistant | LaSagnA-7B | 42.0 | 43.9 | 63.2 | – |" in result.stdout
    out = tmp_path / "out"
    written = {path.name for path in out.iterdir()}
    assert written == {
        "parts",
        "figures.json",
        "tables.md",
        "table-1.svg",
        "table-4.svg",
        "table-6.svg",
        "reliability-tiny.svg",
        "reliability-by one.svg",
    }
    assert "farm val N-acc" in document.read_text()
    report = json.loads((out / "figures.json").read_text())
    assert len(report["parts"]) == 6
    by_one = next(part for part in report["parts"] if part["model"] == "by one" and part["table"] == "closed_set")
    assert by_one["absent_false_positive_rate"] == 1.0  # it says that all it is asked for is there
    assert by_one["presence"]["recall"] == 1.0
    chunks = {part["chunk_size"]: part for part in report["parts"] if part["table"] == "chunk_sizes"}
    assert (chunks["N"]["lists"], chunks["1"]["lists"]) == (1, 3)
    assert chunks["N"]["forwards"] >= 2
    plots = {path.name: path.read_bytes() for path in out.glob("*.svg")}

    again = run(suite_file, "--json")
    assert again.exit_code == 0, again.output
    assert again.stderr.count("from before") == 6
    assert json.loads(again.stdout)["parts"] == report["parts"]
    assert {path.name: path.read_bytes() for path in out.glob("*.svg")} == plots  # they depend on the figures alone


@pytest.mark.parametrize("options", [["--data", "."], ["--limit", "3"], ["--model", "nano"], ["--chunk-size", "2"]])
def test_options_of_one_data_set_do_not_go_with_a_suite(suite_file: Path, options: list[str]) -> None:
    result = run(suite_file, *options)
    assert result.exit_code == 2
    assert "a suite file says what is evaluated" in result.stderr


def test_nothing_to_evaluate() -> None:
    assert "give a suite file" in run().stderr


def test_ours_are_in_the_papers_columns_where_the_data_set_is_the_papers() -> None:
    ours = {"nano": {"cityscapes val": {"miou": 0.5}, "camvid val": {"miou": 0.6}}}
    lines = beside_paper(TABLE_1, ours, (("miou", "mIoU"),)).splitlines()
    assert lines[2] == "|  | method | ADE20K | COCO-Stuff | Cityscapes | camvid val |"
    assert lines[-1] == "| ours | nano | – | – | 50.0 | 60.0 |"
    ours = {"nano": {"grefcoco testA": {"ciou": 0.1, "giou": 0.2, "n_acc": 0.3, "t_acc": None}}}
    metrics = (("ciou", "cIoU"), ("giou", "gIoU"), ("n_acc", "N-acc"), ("t_acc", "T-acc"))
    last = beside_paper(TABLE_4, ours, metrics).splitlines()[-1]
    assert last == "| ours | nano | – | – | 10.0 | 20.0 | – | – |"


def test_the_numbers_are_the_papers(shared: Callable[[str], Path]) -> None:
    text = shared("paper.txt").read_text()
    for table in TABLES:
        for _, method, figures in table.rows:
            printed = "\t".join("-" if value is None else str(value) for value in figures)
            stated = "8.5 on PC-459, 14.3 on A-150, 46.1 on PC-59, and 69.8 on PAS-20"  # cut off in the table
            assert printed in text or re.findall(r"[\d.]+(?= on)", stated) == printed.split("\t"), (
                table.number,
                method,
            )


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_shipped_suites_are_valid_and_name_data_that_is_there(path: Path, shared_data: Path) -> None:
    suite = read_suite(path, [f"data={shared_data}"])
    parts = Runner(suite).parts
    assert len(parts) >= 5
    assert all((shared_data / part.data / "val.txt").exists() for part in parts)
    # Open-set figures are of a model that has not seen the sets, which an experiment trains.
    trained = {"unseen": "runs/unseen/run/checkpoint"}.get(path.stem, "nano")
    assert {spec.checkpoint for spec in suite.models.values()} == {trained}
