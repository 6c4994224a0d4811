"""`lasagna data` on samples of the published formats."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lasagna.commands.cli import main
from tests.training.data.sources.samples import SAMPLES


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("ade20k", "refcoco", "llava_instruct_150k", "openimages"):
        SAMPLES[name](tmp_path)
    return tmp_path


def test_what_is_there_and_what_is_not(root: Path) -> None:
    result = run("--root", root)
    assert result.exit_code == 0, result.output
    for line in ("ade20k train: 1 records, 150 classes", "refcoco train: 1 records\n", "openimages train: 1 records"):
        assert line in result.output
    assert f"ade20k val: not found\n  {root / 'ade20k'}: not a complete copy of ADE20K" in result.output
    assert "refcoco val: not found\n" in result.output
    assert "cityscapes train: not found\n" in result.output
    assert "folder" not in result.output.replace("of the folders", "")


@pytest.mark.parametrize(("split", "code"), [("train", 0), ("val", 1)])
def test_a_named_data_set_must_be_there(root: Path, split: str, code: int) -> None:
    result = run("ade20k", "--root", root, "--split", split)
    assert result.exit_code == code, result.output
    assert result.output.count("ade20k") >= 1
    assert "refcoco" not in result.output


def test_check_reads_every_mask(root: Path) -> None:
    assert run("ade20k", "refcoco", "--root", root, "--split", "train", "--check").exit_code == 0
    (mask,) = (root / "ade20k").rglob("*.png")
    mask.write_bytes(mask.read_bytes()[:60])
    result = run("ade20k", "refcoco", "--root", root, "--split", "train", "--check")
    assert result.exit_code == 1
    assert f"ade20k train ADE_train_00000001: {mask}: the mask cannot be read" in result.output


def test_show_draws_masks_negatives_and_texts(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run("ade20k", "refcoco", "llava_instruct_150k", "--root", root, "--split", "train", "--show", page)
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.count('<article class="card"') == 3
    assert text.count("<path data-class=") == 4  # wall, flag, void, and the man
    for shown in ("ade20k train ADE_train_00000001", "(void)", "148 absent", ">man<", "What? – A bus."):
        assert shown in text
    assert "Model" not in text
    assert len(list((tmp_path / "gallery").glob("*.jpg"))) == 1  # all samples have the same photo


def test_an_unknown_name(root: Path) -> None:
    result = run("ade", "--root", root)
    assert result.exit_code == 2
    assert "unknown data set 'ade'; known are ade20k" in result.output
