"""The package as a stranger gets it: what it asks for, what the wheel holds, and that it works without a checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import check_jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.setup import uv, uv_environment

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TESTED_EXTRAS = ("http", "s3", "ray", "train", "heic", "openvino", "cvat", "datasets", "supervision")


def requirements() -> list[Requirement]:
    """What the wheel asks for, with the extras that the tests install."""
    known = PROJECT["project"]
    extras = known["optional-dependencies"]
    assert {*extras} - {*TESTED_EXTRAS} == {"gcs", "azure"}, "no cloud of theirs can be had in a test"
    texts = [*known["dependencies"], *(text for name in TESTED_EXTRAS for text in extras[name])]
    return [Requirement(text) for text in texts]


def pinned_versions() -> dict[str, str]:
    """Name: version, as tools/constraints.txt has them."""
    lines = (ROOT / "tools" / "constraints.txt").read_text().splitlines()
    return dict(line.split("==", 1) for line in lines if not line.startswith("#"))


class TestRequirements:
    def test_none_is_pinned_to_one_version(self) -> None:
        pins = {"==", "===", "~="}
        assert [str(one) for one in requirements() if pins & {part.operator for part in one.specifier}] == []

    @pytest.mark.parametrize("requirement", requirements(), ids=lambda one: one.name)
    def test_each_has_a_tested_version_in_its_range(self, requirement: Requirement) -> None:
        assert requirement.specifier.contains(pinned_versions()[canonicalize_name(requirement.name)])

    def test_none_needs_what_only_overrides_can_resolve(self) -> None:
        names = {canonicalize_name(one.name) for one in requirements()}
        apart = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependency-groups"]["label-studio-ml"]}
        assert apart == {"label-studio-ml"}
        assert not names & apart


class TestFiles:
    def test_the_version_stands_in_one_place_and_the_changelog_has_it(self) -> None:
        current = PROJECT["project"]["version"]
        assert version("lasagna-assist") == current, "type `make setup`"
        headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.M)
        assert headings[0] == ("Unreleased", "")
        assert headings[1][0] == current
        assert all(date for _, date in headings[1:])

    def test_what_contributing_names_is_there(self) -> None:
        text = (ROOT / "CONTRIBUTING.md").read_text()
        named = set(re.findall(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:md|py|toml))`", text))
        assert len(named) > 15
        assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
        assert set(re.findall(r"\bmake ([a-z-]+)\b(?=`|  )", text)) <= targets

    @pytest.mark.parametrize(
        ("schema", "name"), [("forms", "bug.yml"), ("forms", "feature.yml"), ("config", "config.yml")]
    )
    def test_issue_templates_follow_their_schema(self, schema: str, name: str) -> None:
        path = ROOT / ".github" / "ISSUE_TEMPLATE" / name
        with pytest.raises(SystemExit) as ended:
            check_jsonschema.main(["--builtin-schema", f"vendor.github-issue-{schema}", str(path)])
        assert not ended.value.code

    def test_hooks_run_what_make_setup_installs(self) -> None:
        [local] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        programs = [hook["entry"].split()[0] for hook in local["hooks"] if hook["language"] == "system"]
        assert len(programs) == 3
        assert [name for name in programs if not (ROOT / name).exists()] == []


# --- built, and installed elsewhere -----------------------------------------------------------------------------------

PACKAGES = ("lasagna", "training", "backend", "label_config")


def run(*words: str | Path, folder: Path, code: int = 0, **environ: str) -> "subprocess.CompletedProcess[str]":
    """A command's outcome in an environment without anything of this checkout."""
    kept = {
        name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "LASAGNA", "VIRTUAL_ENV"))
    }
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=kept | environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist, and the wheel that was built from it."""
    source, out = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("built")
    source.mkdir()
    for name in (*PACKAGES, "lab", "tests", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    run(uv(), "build", "--quiet", "--out-dir", out, source, folder=source, **uv_environment())
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    [path] = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of programs of an environment in which pip installed the wheel, with the tested versions, and no extra."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=True, symlinks=True)
    programs = folder / "env" / "bin"
    # Quicker: modules are compiled when they are used, and most never are.
    options = ("--quiet", "--no-compile", "--disable-pip-version-check")
    constraints = ROOT / "tools" / "constraints.txt"
    run(programs / "pip", "install", *options, "--constraint", constraints, wheel, folder=folder)
    yield programs
    shutil.rmtree(folder)  # more than a gigabyte, of which pytest would keep three


@pytest.fixture(scope="module")
def elsewhere(installed: Path, photos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photos, far from the checkout."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "photos").mkdir()
    for name, path in photos.items():
        shutil.copy(path, folder / "photos" / f"{name}{path.suffix}")
    return folder


@pytest.mark.slow
class TestBuilt:
    def test_the_wheel_holds_the_packages_and_nothing_else(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as file:
            found = set(file.namelist())
        info = f"lasagna_assist-{PROJECT['project']['version']}.dist-info"
        assert {name.partition("/")[0] for name in found} == {*PACKAGES, info}
        ours = {
            str(path.relative_to(ROOT))
            for package in PACKAGES
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.name != "Dockerfile"
        }
        assert {name for name in found if not name.startswith(info)} == ours
        assert {f"{package}/py.typed" for package in PACKAGES[:3]} <= found
        assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= found

    def test_the_sdist_has_no_tests_and_no_laboratory(self, built: Path) -> None:
        [path] = built.glob("*.tar.gz")
        with tarfile.open(path) as file:
            found = {name.split("/")[1] for name in file.getnames() if "/" in name}
        assert {*PACKAGES, "LICENSE", "NOTICE", "README.md", "pyproject.toml"} <= found
        assert not {"tests", "lab", "tools"} & found

    @pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
    def test_uv_resolves_it_without_our_constraints(self, wheel: Path, tmp_path: Path, python: str) -> None:
        extras = ",".join((*TESTED_EXTRAS, "gcs", "azure"))
        (tmp_path / "wanted.txt").write_text(f"lasagna-assist[{extras}] @ {wheel.as_uri()}\n")
        command = (uv(), "pip", "compile", "--quiet", "--no-config", "--python-version", python, "wanted.txt")
        resolved = run(*command, folder=tmp_path, **uv_environment()).stdout
        names = {line.partition("==")[0] for line in resolved.splitlines() if re.match(r"[a-z]", line)}
        assert {"torch", "peft", "ray", "s3fs"} <= names
        assert "label-studio-ml" not in names


@pytest.mark.slow
class TestInstalled:
    def test_pip_finds_nothing_amiss(self, installed: Path, elsewhere: Path) -> None:
        assert run(installed / "pip", "check", folder=elsewhere).stdout.strip() == "No broken requirements found."

    def test_uv_installs_the_same(self, wheel: Path, tmp_path: Path) -> None:
        environ = uv_environment()
        run(uv(), "venv", "--quiet", "--python", sys.executable, "env", folder=tmp_path, **environ)
        program = tmp_path / "env" / "bin" / "python"
        given = ("--quiet", "--no-config", "--constraints", ROOT / "tools" / "constraints.txt")
        run(uv(), "pip", "install", "--python", program, *given, wheel, folder=tmp_path, **environ)
        assert PROJECT["project"]["version"] in run(tmp_path / "env/bin/lasagna", "--version", folder=tmp_path).stdout
        shutil.rmtree(tmp_path / "env")

    def test_commands(self, installed: Path, elsewhere: Path) -> None:
        words = (
            "from lasagna.commands.cli import main; import sys; [main([c, '--help'], standalone_mode=False) for c in "
        )
        names = [*PROJECT["project"]["entry-points"]["lasagna.commands"]]
        told = run(installed / "python", "-c", f"{words}{names}]", folder=elsewhere).stdout
        assert "not installed here" not in told
        assert [name for name in names if f"Usage: {name}" not in told and f" {name} [OPTIONS]" not in told] == []
        listed = run(installed / "lasagna", "--help", folder=elsewhere).stdout
        assert "bench" not in listed
        assert "experiment" not in listed

    def test_annotate(self, installed: Path, elsewhere: Path) -> None:
        labels = "person,cat,cup,motorcycle,rocket"
        run(installed / "lasagna", "annotate", "photos", "--labels", labels, "--out", "labelled", folder=elsewhere)
        report = json.loads((elsewhere / "labelled" / "report.json").read_text())
        assert len(report["images"]) == 5
        tasks = json.loads((elsewhere / "labelled" / "tasks.json").read_text())
        assert sum(bool(task["predictions"][0]["result"]) for task in tasks) >= 3

    def test_a_fine_tune_needs_no_extra(self, installed: Path, elsewhere: Path, squares: Path) -> None:
        sets = f"{{mine: {{rate: 1.0, reader: folder, path: {squares}/squares, split: train}}}}"
        small = (
            *("optimiser.steps=2", "optimiser.warmup=1", "optimiser.batch_size=2", "optimiser.micro_batch=2"),
            *("optimiser.save_every=2", "optimiser.log_every=1", "augment.view=[96,96]", "holdout=0"),
        )
        command = (installed / "lasagna", "train", "finetune", f"tasks.semantic.sets={sets}", "output=run", *small)
        run(*command, "--device", "cpu", folder=elsewhere, OMP_NUM_THREADS="1")
        answered = ("annotate", "photos/cat.png", "--model", "run/checkpoint", "--labels", "red,blue", "--out", "tuned")
        run(installed / "lasagna", *answered, folder=elsewhere)
        assert (elsewhere / "tuned" / "tasks.json").is_file()

    def test_what_needs_an_extra_says_which(self, installed: Path, elsewhere: Path, squares: Path) -> None:
        sets = f"{{mine: {{rate: 1.0, reader: folder, path: {squares}/squares, split: train}}}}"
        for extra, words in {
            "train": ("train", "nano", f"tasks.semantic.sets={sets}", "output=new"),
            "ray": ("annotate", "photos", "--engine", "ray", "--labels", "cat", "--out", "ray"),
            "s3": ("annotate", "s3://bucket/photos/", "--labels", "cat", "--out", "s3"),
        }.items():
            told = run(installed / "lasagna", *words, folder=elsewhere, code=2).stderr
            assert f"pip install 'lasagna-assist[{extra}]'" in told
            assert "Traceback" not in told
