"""The commands `lasagna models list`, `show`, `diff`, `promote`, `rollback` and `prune`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from backend.registry.figures import measured
from backend.registry.registry import Registry, Version
from lab.bench.peer_models import write_model
from lasagna.checkpoint.folder import Calibration, checkpoint_version, find_checkpoint, write_calibration
from lasagna.commands.cli import main
from lasagna.models.loading import load_model
from tests.backend.backend_helpers import light_checkpoint

COMMANDS = ["list", "show", "diff", "gate", "serve", "promote", "rollback", "prune"]


def gate(champion: float, candidate: float, cat: tuple[float, float]) -> dict[str, Any]:
    """The shape of `training.evaluation.gate.Verdict.as_dict`."""
    row = {"name": "cat", "photos": 4, "iou": {"champion": cat[0], "candidate": cat[1]}, "f1": {"candidate": None}}
    figures = {"miou": {"champion": champion, "candidate": candidate, "interval": [0.1, 0.2]}}
    return {"passed": True, "summary": "Passed: mIoU is better.", "figures": figures, "classes": [row]}


@pytest.fixture
def one(registry: Registry, make: Any) -> Version:
    more: dict[str, Any] = {"metrics": gate(0.3, 0.5, (0.2, 0.4)), "labels": ["cat", "dog"]}
    return registry.add(make(2.0), project="12", parent="random-00000000", snapshot="s-1", **more)


@pytest.fixture
def two(registry: Registry, make: Any, one: Version, tmp_path: Path) -> Version:
    """Made from `one`: another temperature and threshold, one class more, one weight changed."""
    folder = tmp_path / "two"
    shutil.copytree(make(2.0), folder)
    write_calibration(folder, Calibration(temperature=3.0, class_offsets={"cat": 0.25}))
    changed = light_checkpoint(tmp_path / "changed", make(2.0), make(2.0))
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors") | load_file(changed / "model.safetensors")
    save_file(weights, folder / "model.safetensors")
    more: dict[str, Any] = {"metrics": gate(0.45, 0.6, (0.35, 0.3)), "labels": ["cat", "sky"]}
    return registry.add(folder, project="12", parent=one.id, snapshot="s-2", **more)


def run(registry: Registry, *arguments: str) -> Result:
    environ = {"LASAGNA_REGISTRY": str(registry.folder), "COLUMNS": "200"}
    return CliRunner().invoke(main, ["models", *arguments], env=environ)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(registry: Registry, command: str) -> None:
    result = run(registry, command, "--help")
    assert result.exit_code == 0
    assert f"  lasagna models {command}" in result.output


class TestList:
    def test_table(self, registry: Registry, one: Version, two: Version) -> None:
        registry.promote("12", one.id, "")
        output = run(registry, "list").output
        assert "nano" in output
        rows = {line.split()[0]: line for line in output.splitlines() if line}
        assert "champion of project 12" in rows[one.id]
        assert "candidate of project 12" in rows[two.id]
        assert (rows[one.id].split()[-1], rows[two.id].split()[-1]) == ("0.500", "0.600")

    def test_of_a_project_with_its_history(self, registry: Registry, one: Version) -> None:
        registry.promote("12", one.id, "better [at] cats")
        registry.rollback("12", "worse at dogs")
        output = run(registry, "list", "--project", "12").output
        assert "better [at] cats" in output
        assert "worse at dogs" in output
        assert "shipped" not in output
        assert "project 13 has no version" in run(registry, "list", "--project", "13").output

    def test_json(self, registry: Registry, one: Version) -> None:
        registry.promote("12", one.id, "")
        found = json.loads(run(registry, "list", "--json").output)
        assert [entry["name"] for entry in found["checkpoints"] if entry["origin"] == "shipped"] == ["nano"]
        assert [(v["id"], v["roles"]) for v in found["versions"]] == [(one.id, {"12": "champion"})]
        assert found["projects"]["12"]["champion"] == one.id
        assert len(found["projects"]["12"]["history"]) == 2


class TestShow:
    def test_words(self, registry: Registry, one: Version) -> None:
        output = run(registry, "show", one.id).output
        for words in ("candidate of project 12", "random-00000000", "s-1", "cat, dog", "Passed: mIoU", "+0.200"):
            assert words in output

    def test_json(self, registry: Registry, one: Version) -> None:
        found = json.loads(run(registry, "show", one.id, "--json").output)
        assert (found["id"], found["labels"], found["roles"]) == (one.id, ["cat", "dog"], {"12": "candidate"})

    def test_unknown(self, registry: Registry, one: Version) -> None:
        result = run(registry, "show", "nano-00000000")
        assert result.exit_code == 2
        assert f"there are {one.id}" in result.output


class TestDiff:
    def test_json(self, registry: Registry, one: Version, two: Version) -> None:
        found = json.loads(run(registry, "diff", one.id, two.id, "--json").output)
        assert (found["labels_added"], found["labels_removed"]) == (["sky"], ["dog"])
        assert found["calibration"] == {"temperature": [2.0, 3.0], "offset of cat": [None, 0.25]}
        assert found["same_photos"]
        assert found["figures"] == {"miou": [0.45, 0.6]}
        assert found["classes"] == {"cat": {"iou": [0.35, 0.3]}}
        [change] = found["weights"]
        assert change["distance"] == pytest.approx(change["parameters"] ** 0.5, rel=1e-4)  # each number is one more
        assert found["only_in"] == []

    def test_table(self, registry: Registry, one: Version, two: Version) -> None:
        output = run(registry, "diff", one.id, two.id).output
        for words in ("labels added: sky", "labels removed: dog", "temperature", "same photos", "-0.050"):
            assert words in output
        assert "1 weights differ" in output

    def test_against_a_checkpoint_outside(self, registry: Registry, one: Version, checkpoint: Path) -> None:
        found = json.loads(run(registry, "diff", str(checkpoint), one.id, "--json").output)
        assert found["ids"] == [checkpoint_version(checkpoint), one.id]
        assert found["weights"] == []
        assert found["figures"] == {"miou": [None, 0.5]}
        assert not found["same_photos"]

    def test_a_light_version_with_its_base(self, registry: Registry, one: Version, tmp_path: Path, make: Any) -> None:
        folder = light_checkpoint(tmp_path / "light", make(2.0), one.checkpoint)
        version = registry.add(folder, project="12", parent=one.id, snapshot="", metrics={})
        found = json.loads(run(registry, "diff", one.id, version.id, "--json").output)
        assert len(found["weights"]) == 1
        assert found["equal_weights"] > 100

    def test_unknown(self, registry: Registry, one: Version) -> None:
        result = run(registry, "diff", one.id, "nothing")
        assert result.exit_code == 2
        assert "unknown checkpoint 'nothing'" in result.output


class TestChanges:
    def test_promote_and_roll_back(self, registry: Registry, one: Version, two: Version) -> None:
        output = run(registry, "promote", "12", one.id, "--reason", "by hand").output
        assert f"project 12 is now served by {one.id}, before by the worker's own model" in output
        assert f"served by {one.id} already" in run(registry, "promote", "12", one.id).output
        assert f"now served by {two.id}, before by {one.id}" in run(registry, "promote", "12").output
        found = json.loads(run(registry, "rollback", "12", "--json").output)
        assert found == {"project": "12", "champion": one.id, "before": two.id}
        assert "now served by the worker's own model" in run(registry, "rollback", "12").output
        assert registry.aliases("12").history[2].reason == "by hand"

    def test_a_project_can_have_a_model_of_another_maker(
        self, registry: Registry, one: Version, tmp_path: Path
    ) -> None:
        folder = write_model("clipseg", tmp_path / "clipseg")
        run(registry, "promote", "12", one.id)
        output = run(registry, "serve", "12", str(folder)).output
        champion = registry.champion("12")
        assert champion is not None
        assert champion.id == checkpoint_version(folder) == load_model(champion.checkpoint, device="cpu").version
        assert f"{champion.id}: licence apache-2.0" in output
        assert f"project 12 is now served by {champion.id}, before by {one.id}" in output
        assert registry.champion("13") is None
        assert f"now served by {one.id}" in run(registry, "rollback", "12").output

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("promote", "12"), "has no candidate"),
            (("promote", "12", "nano-00000000"), "has none yet"),
            (("promote", "a b"), "not the number of a project"),
            (("rollback", "12"), "no champion to roll back"),
        ],
        ids=["no candidate", "unknown", "project", "nothing to roll back"],
    )
    def test_refused_in_words(self, registry: Registry, arguments: tuple[str, ...], words: str) -> None:
        result = run(registry, *arguments)
        assert result.exit_code == 2
        assert words in result.output

    def test_prune(self, registry: Registry, one: Version, two: Version) -> None:
        assert f"would remove {one.id}" in run(registry, "prune", "--keep", "0", "--dry-run").output
        assert json.loads(run(registry, "prune", "--keep", "0", "--json").output)["removed"] == [one.id]
        assert registry.versions() == [two]


def test_a_version_s_id_is_a_name_for_every_command(
    registry: Registry, one: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LASAGNA_REGISTRY", str(registry.folder))
    assert find_checkpoint(one.id) == one.checkpoint


@pytest.mark.parametrize(
    ("metrics", "side", "expected"),
    [
        ({"miou": 0.5, "passed": True, "words": "x"}, "candidate", ({"miou": 0.5}, {})),
        (gate(0.3, 0.5, (0.2, 0.4)), "candidate", ({"miou": 0.5}, {"cat": {"iou": 0.4}})),
        (gate(0.3, 0.5, (0.2, 0.4)), "champion", ({"miou": 0.3}, {"cat": {"iou": 0.2}})),
        ({}, "candidate", ({}, {})),
    ],
    ids=["plain", "gate", "gate's champion", "none"],
)
def test_figures(metrics: dict[str, Any], side: str, expected: Any) -> None:
    assert measured(metrics, side) == expected
