"""The package as a stranger gets it: what it asks for, what the wheel holds, and that it works without a checkout."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import check_jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TESTED_EXTRAS = ("http", "s3", "ray", "train")


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
