"""The public Python API: what `lasagna.__all__` lists, and what docs/api.md says of it."""

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lasagna
from lasagna.errors import LasagnaError

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


def test_every_name_is_there_and_on_the_page() -> None:
    assert [name for name in lasagna.__all__ if getattr(lasagna, name, None) is None] == []
    assert [name for name in lasagna.__all__ if f"`{name}`" not in PAGE] == []
    with pytest.raises(AttributeError, match="no attribute 'Lasanga'"):
        _ = lasagna.Lasanga


def test_every_error_is_public() -> None:
    errors = {kind.__name__ for kind in LasagnaError.__subclasses__() if kind.__module__ == "lasagna.errors"}
    assert {*errors, "LasagnaError"} == {name for name in lasagna.__all__ if name.endswith("Error")}


def test_the_page_names_what_the_classes_have() -> None:
    methods = dict(re.findall(r"^\| `(?:Lasagna|model)\.(\w+)(?:\((.*)\))?` \|", PAGE, re.M))
    assert len(methods) == 14
    for name, arguments in methods.items():
        found = getattr(lasagna.Lasagna, name, None)
        if name in ("version", "vocabulary"):
            continue  # attributes of the object
        assert found is not None, name
        for argument in re.findall(r"(\w+)=", arguments):
            assert argument in inspect.signature(found).parameters, (name, argument)


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path, photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(photos["cat"], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    answer = names["answer"]
    assert isinstance(answer, lasagna.Segmentation)
    assert [one.name for one in answer.classes] == ["Kfz", "road"]


def test_importing_is_quick() -> None:
    """No torch, and nothing of the commands."""
    code = "import sys, lasagna; print([m for m in ('torch', 'click', 'transformers', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
