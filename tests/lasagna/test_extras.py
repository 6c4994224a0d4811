"""A package of an extra that is missing is said in words, before any work is done."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lasagna.commands.cli import main
from lasagna.errors import ConfigError
from lasagna.extras import load_extra


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("fsspec", "http", ["annotate", "http://127.0.0.1:9/a.jpg"]),
        ("ray", "ray", ["annotate", "PHOTO", "--engine", "ray"]),
    ],
)
def test_commands(
    package: str,
    extra: str,
    arguments: list[str],
    tmp_path: Path,
    photos: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    words = [str(photos["cat"]) if word == "PHOTO" else word for word in arguments]
    result = CliRunner().invoke(main, [*words, "--labels", "cat", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert f"needs the package {package}, which is not installed: pip install 'lasagna-assist[{extra}]'" in said


def test_a_package_that_an_installed_one_needs_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outer_package.py").write_text("import inner_package.part\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"^A job needs the package inner_package, .*lasagna-assist\[some\]"):
        load_extra("outer_package", "some", "A job")
