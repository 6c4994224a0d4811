"""Which model answers a task, and which are in memory."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.registry.registry import Registry, Version
from backend.worker.loaded_models import LoadedModels
from lasagna import Lasagna
from lasagna.errors import CheckpointError, RegistryError
from tests.backend.backend_helpers import light_checkpoint


@pytest.fixture(scope="module")
def own(checkpoint: Path) -> Lasagna:
    return Lasagna.from_pretrained(checkpoint, device="cpu")


@pytest.fixture
def add(registry: Registry, make: Any) -> Callable[[float], Version]:
    """A function that adds the version of a temperature to project 3."""
    return lambda temperature: registry.add(make(temperature), project="3", parent="", snapshot="", metrics={})


def models(own: Lasagna, registry: Registry, limit: int = 2) -> LoadedModels:
    return LoadedModels(own, registry, limit, device="cpu")


def test_the_version_that_was_asked_answers(own: Lasagna, registry: Registry, add: Any) -> None:
    one, two = add(2.0), add(3.0)
    registry.promote("3", two.id, "")  # whoever serves now, a job is of the version that it was made for
    found = models(own, registry)
    assert [found.of("3.17", id).version for id in (own.version, one.id, two.id)] == [own.version, one.id, two.id]
    assert found.of("3.17", one.id).calibration.temperature == 2.0
    assert found.of("3.17", own.version) is own
    assert found.of("3.17", one.id) is found.of("4.17", one.id)


def test_the_version_used_longest_ago_makes_room(own: Lasagna, registry: Registry, add: Any) -> None:
    one, two, three = add(2.0), add(3.0), add(4.0)
    found = models(own, registry, limit=2)
    for version in (one, two, one, three):
        found.of("3", version.id)
    assert found.versions == [own.version, one.id, three.id]
    found.of("3", two.id)
    assert found.versions == [own.version, three.id, two.id]


@pytest.mark.parametrize("promoted", [True, False], ids=["champion", "own model"])
def test_a_version_that_is_gone_is_answered_by_what_serves_now(
    own: Lasagna, registry: Registry, add: Any, promoted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    version = add(2.0)
    if promoted:
        registry.promote("3.17", version.id, "")
    found = models(own, registry)
    assert found.of("3.17", "random-ffffffff").version == (version.id if promoted else own.version)
    assert "random-ffffffff of project 3 is not in" in caplog.text
    assert found.of("4.17", "random-ffffffff") is own
    assert found.of("", "random-ffffffff") is own


def test_a_champion_that_is_gone_is_an_error(own: Lasagna, registry: Registry, add: Any) -> None:
    version = add(2.0)
    registry.promote("3", version.id, "")
    shutil.rmtree(version.folder)
    with pytest.raises(RegistryError, match="the champion of project 3 is gone"):
        models(own, registry).of("3", version.id)


def test_a_version_that_was_changed_is_not_used(own: Lasagna, registry: Registry, add: Any) -> None:
    version = add(2.0)
    path = version.checkpoint / "calibration.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("2.0", "2.5"))
    with pytest.raises(CheckpointError, match="was changed"):
        models(own, registry).of("3", version.id)


def test_light_versions_share_the_weights_of_the_own_model(
    own: Lasagna, registry: Registry, checkpoint: Path, tmp_path: Path
) -> None:
    folder = light_checkpoint(tmp_path / "light", checkpoint, checkpoint)
    version = registry.add(folder, project="3", parent=own.version, snapshot="", metrics={})
    loaded = models(own, registry).of("3", version.id)
    pointers = [{k: v.data_ptr() for k, v in m.model.state_dict().items()} for m in (own, loaded)]
    assert sum(pointers[0][key] != pointers[1][key] for key in pointers[0]) == 1
