"""The registry: versions that are whole or not there, and aliases that change at once."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backend.registry.registry import Registry, Version
from lasagna import Lasagna
from lasagna.checkpoint.folder import Calibration, checkpoint_version, write_calibration
from lasagna.errors import CheckpointError, RegistryError
from tests.backend.backend_helpers import light_checkpoint

BASE_MODEL = "random-00000000"


def add(registry: Registry, folder: Path, project: str = "12", **more: Any) -> Version:
    given = {"parent": BASE_MODEL, "snapshot": "s-1", "metrics": {"miou": 0.5}, **more}
    return registry.add(folder, project=project, **given)


class TestAdd:
    def test_a_version_says_where_it_is_from(self, registry: Registry, make: Any, tmp_path: Path) -> None:
        report = tmp_path / "report.html"
        report.write_text("passed")
        version = add(registry, make(2.0), "12.1698", reports=[report], labels=["cat", "sky"])
        assert version == registry.version(version.id) == registry.candidate("12.1698")
        assert (version.name, version.project, version.parent, version.base) == ("random", "12.1698", BASE_MODEL, "")
        assert (version.snapshot, version.metrics, version.labels) == ("s-1", {"miou": 0.5}, ("cat", "sky"))
        assert [path.read_text() for path in version.reports] == ["passed"]
        assert registry.candidate("12.1700") is None  # of another Label Studio

    def test_its_id_is_what_a_loaded_model_calls_itself(self, registry: Registry, make: Any) -> None:
        version = add(registry, make(2.0))
        model = Lasagna.from_pretrained(version.checkpoint, device="cpu")
        assert version.id == model.version == checkpoint_version(version.checkpoint)
        assert model.calibration.temperature == 2.0

    def test_the_same_content_is_one_version(self, registry: Registry, make: Any) -> None:
        first = add(registry, make(2.0))
        again = add(registry, make(2.0), "13", snapshot="s-2")
        assert again == first
        assert [v.id for v in registry.versions()] == [v.id for v in registry.versions("13")] == [first.id]
        assert registry.candidate("13") == first

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ({"temperature": 2.0}, {"temperature": 3.0}),
            ({"labels": ["cat"]}, {"labels": ["cat", "dog"]}),
            ({"labels": ["cat"]}, {}),
            ({"name": "one"}, {"name": "two"}),
        ],
        ids=["calibration", "label set", "no label set", "name"],
    )
    def test_another_content_is_another_version(
        self, registry: Registry, make: Any, first: dict[str, Any], second: dict[str, Any]
    ) -> None:
        ids = set()
        for case in (first, second):
            more = {key: value for key, value in case.items() if key != "temperature"}
            ids.add(add(registry, make(case.get("temperature", 1.0)), **more).id)
        assert len(ids) == 2

    def test_added_again_by_a_job_that_was_killed_after_its_promotion(self, registry: Registry, make: Any) -> None:
        version = add(registry, make(2.0))
        registry.promote("12", version.id, "passed")
        add(registry, make(2.0))
        assert registry.champion("12") == version
        assert registry.candidate("12") is None

    def test_the_version_s_files_are_its_own(self, registry: Registry, make: Any) -> None:
        folder = make(2.0)
        version = add(registry, folder)
        write_calibration(folder, Calibration(temperature=9.0))
        (folder / "model.safetensors").unlink()
        assert checkpoint_version(version.checkpoint) == version.id
        assert all(path.stat().st_mode & 0o222 == 0 for path in version.folder.rglob("*") if path.is_file())

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"project": "a b"}, RegistryError, "not the number of a project"),
            ({"project": ""}, RegistryError, "not the number of a project"),
            ({"project": "../x"}, RegistryError, "not the number of a project"),
            ({"reports": [Path("version.json")]}, RegistryError, "cannot be called version.json"),
            ({"missing": "model.safetensors"}, CheckpointError, "not a complete checkpoint"),
            ({"missing": "."}, CheckpointError, "unknown checkpoint"),
            ({"reports": [Path("/nowhere/report.html")]}, FileNotFoundError, "/nowhere"),
        ],
        ids=["project", "no project", "path", "report", "half", "none", "no report"],
    )
    def test_refused_and_nothing_left(
        self, registry: Registry, make: Any, change: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        folder = make(2.0)
        missing = change.pop("missing", None)
        if missing == ".":
            shutil.rmtree(folder)
        elif missing:
            (folder / missing).unlink()
        with pytest.raises(error, match=words):
            add(registry, folder, **change)
        assert registry.versions() == []
        assert not [path for path in registry.folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


class TestLight:
    def test_laid_over_a_version_of_the_registry_it_moves_with_it(
        self, registry: Registry, make: Any, tmp_path: Path
    ) -> None:
        base = add(registry, make(2.0))
        version = add(registry, light_checkpoint(tmp_path / "light", make(2.0), base.checkpoint))
        assert version.base == base.id
        moved = Registry(tmp_path / "moved")
        registry.folder.rename(moved.folder)
        loaded = Lasagna.from_pretrained(moved.version(version.id).checkpoint, device="cpu")
        assert loaded.version == version.id

    @pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
    def test_laid_over_a_folder_outside(self, registry: Registry, make: Any, tmp_path: Path, relative: bool) -> None:
        outside = make(3.0)
        version = add(
            registry, light_checkpoint(tmp_path / "light", outside, f"../{outside.name}" if relative else outside)
        )
        assert version.base == checkpoint_version(outside)
        assert Lasagna.from_pretrained(version.checkpoint, device="cpu").version == version.id

    def test_another_base_is_another_version(self, registry: Registry, make: Any, tmp_path: Path) -> None:
        versions = [
            add(registry, light_checkpoint(tmp_path / f"light-{t}", make(2.0), make(t)), name="light")
            for t in (2.0, 3.0)
        ]
        assert versions[0].id != versions[1].id


class TestAliases:
    def test_promote_and_roll_back(self, registry: Registry, make: Any) -> None:
        one, two, three = (add(registry, make(t)) for t in (2.0, 3.0, 4.0))
        for version in (one, two, three):
            assert registry.promote("12", version.id, "better") == registry.champion("12") == version
        assert [registry.aliases("12").role(v.id) for v in (one, two, three)] == ["former", "former", "champion"]
        assert [registry.rollback("12", "worse") for _ in range(3)] == [two, one, None]
        assert registry.champion("12") is None
        with pytest.raises(RegistryError, match="no champion to roll back"):
            registry.rollback("12", "worse")
        history = registry.aliases("12").history
        assert [event.action for event in history] == ["add"] * 3 + ["promote"] * 3 + ["rollback"] * 3
        assert (history[-1].version, history[-1].before, history[-1].reason) == ("", one.id, "worse")
        assert history[-1].when >= history[0].when > "2026"

    def test_the_candidate_is_the_newest_that_does_not_serve(self, registry: Registry, make: Any) -> None:
        one, two = add(registry, make(2.0)), add(registry, make(3.0))
        registry.promote("12", one.id, "by hand")
        assert registry.candidate("12") == two
        registry.promote("12", two.id, "passed")
        assert registry.candidate("12") is None

    def test_projects_have_champions_of_their_own(self, registry: Registry, make: Any) -> None:
        one, two = add(registry, make(2.0)), add(registry, make(3.0), "13")
        registry.promote("12", one.id, "")
        registry.promote("13", two.id, "")
        registry.promote("14", two.id, "a version of another project")
        assert [registry.champion(p) for p in ("12", "13", "14", "15", "")] == [one, two, two, None, None]
        assert registry.projects() == ["12", "13", "14"]
        assert registry.versions("14") == [two]

    def test_promoted_twice_is_promoted_once(self, registry: Registry, make: Any) -> None:
        version = add(registry, make(2.0))
        registry.promote("12", version.id, "")
        registry.promote("12", version.id, "")
        assert registry.rollback("12", "") is None

    def test_what_is_not_there_is_said(self, registry: Registry, make: Any) -> None:
        with pytest.raises(RegistryError, match="has none yet"):
            registry.promote("12", "random-ffffffff", "")
        version = add(registry, make(2.0))
        with pytest.raises(RegistryError, match=f"there are {version.id}"):
            registry.promote("12", "random-ffffffff", "")
        registry.promote("12", version.id, "")
        shutil.rmtree(version.folder)
        with pytest.raises(RegistryError, match="the champion of project 12 is gone"):
            registry.champion("12")

    @pytest.mark.parametrize("text", ["{", "[]", '{"champion": ""}'], ids=["cut", "list", "half"])
    def test_a_record_that_somebody_broke(self, registry: Registry, make: Any, text: str) -> None:
        add(registry, make(2.0))
        (registry.folder / "projects" / "12.json").write_text(text)
        with pytest.raises(RegistryError, match=r"12\.json"):
            registry.champion("12")


class TestPrune:
    def test_what_is_needed_stays(self, registry: Registry, make: Any, tmp_path: Path) -> None:
        base = add(registry, make(1.5))
        champion = add(registry, light_checkpoint(tmp_path / "light", make(1.5), base.checkpoint), name="light")
        former, old, other, newest = (add(registry, make(t)) for t in (2.0, 3.0, 4.0, 5.0))
        for version in (former, champion):
            registry.promote("12", version.id, "")
        registry.promote("13", other.id, "")
        assert registry.prune(0, dry_run=True) == [old]
        assert len(registry.versions()) == 6
        assert registry.prune(0) == [old]
        assert {v.id for v in registry.versions()} == {v.id for v in (base, champion, former, other, newest)}
        assert registry.rollback("12", "") == former

    @pytest.mark.parametrize(("keep", "left"), [(0, 1), (1, 1), (2, 2), (4, 4), (5, 5), (8, 5)])
    def test_the_newest_stay(self, registry: Registry, make: Any, keep: int, left: int) -> None:
        versions = [add(registry, make(t)) for t in (2.0, 3.0, 4.0, 5.0, 6.0)]
        registry.prune(keep)
        assert registry.versions() == versions[5 - left :]

    def test_one_project_alone(self, registry: Registry, make: Any) -> None:
        shared, mine, *_ = (add(registry, make(t)) for t in (2.0, 3.0, 4.0))
        add(registry, make(2.0), "13")
        theirs = [add(registry, make(t), "13") for t in (5.0, 6.0)]
        assert registry.prune(1, "12") == [mine]
        assert {v.id for v in registry.versions("13")} == {v.id for v in (shared, *theirs)}

    def test_a_former_champion_that_was_pruned_is_passed_over(self, registry: Registry, make: Any) -> None:
        one, two, three = (add(registry, make(t)) for t in (2.0, 3.0, 4.0))
        for version in (one, two, three):
            registry.promote("12", version.id, "")
        assert registry.prune(1) == [one]
        assert [registry.rollback("12", "") for _ in range(2)] == [two, None]


# --- processes --------------------------------------------------------------------------------------------------------


@contextmanager
def run(code: str, *arguments: Any) -> Iterator[subprocess.Popen[str]]:
    """Python code in a process of its own, killed at the end; `registry` is that in the folder of the first argument.

    Returns once the code has printed its first line.
    """
    head = "import sys, time; from pathlib import Path; from backend.registry.registry import Registry\n"
    program = f"{head}registry = Registry(Path(sys.argv[1]))\n{code}"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "here\n"
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_two_processes_that_promote_at_once_lose_nothing(registry: Registry, make: Any) -> None:
    ids = [add(registry, make(t)).id for t in (2.0, 3.0)]
    code = """
print("here", flush=True)
for i in range(40):
    registry.promote("12", sys.argv[2 + i % 2], "by a process")
"""
    seen = set()
    with run(code, registry.folder, *ids) as one, run(code, registry.folder, *ids[::-1]) as two:
        while one.poll() is None or two.poll() is None:
            champion = registry.champion("12")  # what a reader sees is whole at any time
            seen.add(champion.id if champion else "")
        assert (one.returncode, two.returncode) == (0, 0)
    assert seen <= {"", *ids}
    history = [event for event in registry.aliases("12").history if event.action == "promote"]
    assert [event.before for event in history] == ["", *[event.version for event in history[:-1]]]
    assert registry.champion("12") == registry.version(history[-1].version)


STEPS = {"copied": "Registry._identity", "recorded": "Path.rename", "renamed": "Registry._set_candidate"}


@pytest.mark.parametrize("step", STEPS)
def test_killed_in_the_middle_of_add(registry: Registry, make: Any, step: str) -> None:
    champion = add(registry, make(9.0))
    registry.promote("12", champion.id, "")
    code = f"""
def stop(*args, **more):
    print("here", flush=True)
    time.sleep(600)
{STEPS[step]} = stop
registry.add(Path(sys.argv[2]), project="12", parent="random-0", snapshot="", metrics={{}})
"""
    with run(code, registry.folder, make(2.0)):
        pass  # it is killed here
    is_there = step == "renamed"
    assert len(registry.versions()) == (2 if is_there else 1)
    assert registry.champion("12") == champion
    assert len(list((registry.folder / "versions").glob(".adding-*"))) == (0 if is_there else 1)
    version = add(registry, make(2.0))  # the lock went with the process
    assert registry.candidate("12") == version
    assert checkpoint_version(version.checkpoint) == version.id
    assert not list((registry.folder / "versions").glob(".*"))


@pytest.mark.slow
def test_killed_at_any_moment(registry: Registry, make: Any) -> None:
    """Kills a process that adds and promotes without end, after ever longer times; what is left is always whole."""
    code = """
registry.folder.mkdir(exist_ok=True)
print("here", flush=True)
while True:
    for folder in sys.argv[2:]:
        version = registry.add(Path(folder), project="12", parent="", snapshot="", metrics={}, name="m")
        registry.promote("12", version.id, "")
        registry.prune(0)
        registry.rollback("12", "")
        registry.prune(0)
"""
    for attempt in range(5):
        with run(code, registry.folder, make(2.0), make(3.0)):
            time.sleep(0.03 + 0.05 * attempt)
        registry.champion("12")
        registry.candidate("12")
        for version in registry.versions():
            assert checkpoint_version(version.checkpoint) == version.id
