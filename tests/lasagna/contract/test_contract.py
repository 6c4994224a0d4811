"""Every model keeps the contract, and what does not is found."""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lab.bench.peer_models import KINDS, write_model
from lasagna import ClassAnswer, Lasagna, Segmentation
from lasagna.assistant.inputs import as_array, check_batch
from lasagna.checkpoint.folder import Calibration, write_calibration
from lasagna.commands.cli import main
from lasagna.contract.check import broken
from lasagna.contract.model import Abilities, ClassListModel
from lasagna.errors import CheckpointError, ConfigError
from lasagna.models.loading import about, is_calibrated, load_model


@pytest.mark.parametrize("kind", KINDS)
def test_other_makers_models_keep_it(kind: str, tmp_path: Path) -> None:
    model = load_model(write_model(kind, tmp_path / kind), device="cpu")
    assert broken(model) == []


def test_nano_keeps_it() -> None:
    assert broken(load_model("nano", device="cpu")) == []


def test_a_random_lasagna_keeps_it() -> None:
    assert broken(Lasagna.random()) == []


class Bright(ClassListModel):
    """A class is present as far as the photo is bright; for the faults below."""

    version = "bright-1"

    def segment_batch(  # type: ignore[override]
        self, images: Sequence[Any], class_lists: Sequence[Any], *, threshold: Any = None, exclusive: Any = False,
        chunk_size: Any = None, guess_unknown: Any = False,
    ) -> list[Segmentation]:  # fmt: skip
        found = []
        lists = check_batch(images, class_lists, threshold, chunk_size, exclusive)
        for image, queries in zip(images, lists, strict=True):
            grey = as_array(image).mean(2)
            answers = []
            for number, query in enumerate(queries):
                mask = (grey > 128) & (number == 0 or not exclusive)
                level = query.threshold or threshold or 0.5
                share = float((grey > 128).mean())
                answers.append(ClassAnswer(query.name, share, mask if share >= level else None))
            found.append(self.change(Segmentation((grey.shape[0], grey.shape[1]), tuple(answers)), images))
        return found

    def change(self, answer: Segmentation, images: Sequence[Any]) -> Segmentation:
        return answer


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model that another package brings: the example of docs/extend.md, as it is installed."""
    page = (Path(__file__).parents[3] / "docs" / "extend.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class Bright" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 32
    [entry] = [block for block in re.findall(r"```toml\n(.*?)```", page, re.S) if "lasagna.architectures" in block]
    package = tmp_path / "site" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "bright.py").write_text(code, encoding="utf-8")
    about = tmp_path / "site" / "my_package-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n", encoding="utf-8")
    points = entry.replace('[project.entry-points."lasagna.architectures"]', "[lasagna.architectures]").replace('"', "")
    (about / "entry_points.txt").write_text(points, encoding="utf-8")
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:  # another test's
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    folder = tmp_path / "bright"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bright"}', encoding="utf-8")
    return folder


def test_one_that_another_package_brings_keeps_it(registered: Path) -> None:
    model = load_model(registered)
    assert model.version.startswith("bright-")
    assert broken(model) == []


def test_a_folder_of_an_unknown_type_says_which_are_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"model_type 'bert', and known here are clipseg, eomt"):
        load_model(tmp_path)


def test_the_command_says_what_a_model_is_and_keeps(registered: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["models", "check", str(registered)])
    assert (result.exit_code, result.output.count("keeps the contract")) == (0, 1)
    assert "cannot answer clicks and boxes" in result.output
    package = tmp_path / "site" / "my_package" / "bright.py"
    package.write_text(package.read_text().replace(", share,", ", share / 100,"))
    sys.modules.pop("my_package.bright")
    result = CliRunner().invoke(main, ["models", "check", str(registered)])
    assert result.exit_code == 1
    assert "not kept: " in result.stderr


def test_options_of_lasagna_are_refused(registered: Path) -> None:
    with pytest.raises(ConfigError, match="quantise and encoder can only be given for a checkpoint of LaSagnA"):
        load_model(registered, quantise="int8", encoder="openvino")


def test_licence_and_what_is_missing_are_said_at_load(tmp_path: Path) -> None:
    said: list[str] = []
    folder = write_model("clipseg", tmp_path / "clipseg")
    load_model(folder, device="cpu", say=said.append)
    assert said[0].endswith(": licence apache-2.0")
    assert "cannot answer clicks and boxes, answer questions in words" in said[1]
    assert "is not calibrated" in said[2]
    assert "`lasagna calibrate RECIPE --model FOLDER`" in said[2]
    write_calibration(folder, Calibration())
    assert not [line for line in about(load_model(folder, device="cpu")) if "calibrated" in line]


def test_lasagna_needs_no_calibration_to_say_what_is_absent(random_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(random_checkpoint, tmp_path / "plain")
    (folder / "calibration.json").unlink()
    model = load_model(folder, device="cpu")
    assert (is_calibrated(model), [line for line in about(model) if "calibrated" in line]) == (False, [])


def test_what_is_of_lasagna_alone_says_so(registered: Path) -> None:
    with pytest.raises(CheckpointError, match="neither answers questions nor learns"):
        Lasagna.from_pretrained(registered)


def test_half_a_folder_is_refused(tmp_path: Path) -> None:
    folder = write_model("clipseg", tmp_path / "clipseg")
    (folder / "tokenizer.json").unlink()
    (folder / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match="cannot load it"):
        load_model(folder, device="cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"it has no \*.safetensors"):
        load_model(folder, device="cpu")


class Backwards(Bright):
    def change(self, answer: Segmentation, images: Sequence[Any]) -> Segmentation:
        return Segmentation(answer.size, answer.classes[::-1])


class Small(Bright):
    def change(self, answer: Segmentation, images: Sequence[Any]) -> Segmentation:
        return Segmentation((1, 1), tuple(ClassAnswer(one.name, 0.0, None) for one in answer))


class Crowded(Bright):
    def change(self, answer: Segmentation, images: Sequence[Any]) -> Segmentation:
        share = len(images) / 10
        return Segmentation(answer.size, tuple(ClassAnswer(one.name, share, None) for one in answer))


class Deaf(Bright):
    def change(self, answer: Segmentation, images: Sequence[Any]) -> Segmentation:
        return Segmentation(
            answer.size, tuple(ClassAnswer(one.name, 0.9, np.ones(answer.size, bool)) for one in answer)
        )


class Boastful(Bright):
    abilities = Abilities(clicks=True)


class Ignorant(Bright):
    def change(self, answer: Segmentation, images: Sequence[Any]) -> Segmentation:
        return Segmentation(answer.size, tuple(ClassAnswer.unknown(one.name) for one in answer))


class TwoWords(Bright):
    version = "bright 1"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Backwards(), "in the order asked"),
        (Small(), "is of the size"),
        (Crowded(), "another answer asked again"),
        (Deaf(), "is present at 0.98"),
        (Deaf(), "belongs to two classes"),
        (Boastful(), "cannot answer clicks"),
        (Ignorant(), "`knows` says another thing"),
        (TwoWords(), "one word"),
    ],
)
def test_a_broken_sentence_is_named(model: ClassListModel, said: str) -> None:
    assert any(said in line for line in broken(model)), broken(model)


def test_what_a_model_cannot_do_is_said_in_words() -> None:
    with pytest.raises(ConfigError, match=r"bright-1 cannot answer clicks and boxes; draw by hand"):
        Bright().segment_prompt(None, points=[(1.0, 1.0, True)])
    assert "be fine-tuned here" in Bright().abilities.missing
    assert "answer questions in words" not in Lasagna.abilities.missing
