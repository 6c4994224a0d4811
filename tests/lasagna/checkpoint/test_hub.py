"""The hub's cache as huggingface_hub lays it out, without a network: pull, verify, convert, list."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lab.bench.peer_models import write_model
from lasagna import Lasagna
from lasagna.checkpoint.folder import find_checkpoint
from lasagna.checkpoint.hub import is_hub_id, verify
from lasagna.commands.cli import main
from lasagna.errors import CheckpointError
from lasagna.models.loading import load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put(cache: Path, hub_id: str, source: Path) -> Path:
    """Files of a folder as a downloaded repository; the folder that the hub's client would return."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for path in sorted(path for path in source.iterdir() if path.is_file()):
        content = path.read_bytes()
        large = path.suffix in (".safetensors", ".bin", ".model")
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        blob = repository / "blobs" / (hashlib.sha256(content).hexdigest() if large else git)
        blob.write_bytes(content)
        (snapshot / path.name).symlink_to(Path("../..") / "blobs" / blob.name)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and of ours; the network is off."""
    hub = tmp_path / "hub"
    hub.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("LASAGNA_CACHE", str(tmp_path / "ours"))
    return hub


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["models", *arguments])
    return f"{result.exit_code} {result.output}"


def listed() -> list[dict[str, Any]]:
    """The checkpoints of `lasagna models list`."""
    return list(json.loads(run("list", "--json")[2:])["checkpoints"])


def test_ours_is_used_from_the_cache(cache: Path, tmp_path: Path) -> None:
    Lasagna.random(0).save_pretrained(tmp_path / "random")
    snapshot = put(cache, "someone/random", tmp_path / "random")
    found = run("pull", "someone/random")
    assert found.startswith("0 ")
    assert "have the right checksum" in found
    assert find_checkpoint("someone/random") == snapshot
    (entry,) = [e for e in listed() if e["origin"] == "hub cache"]
    assert (entry["name"], entry["dialect"]) == ("someone/random", "paper")
    assert entry["version"].startswith("random-")
    assert entry["size"] == (tmp_path / "random" / "model.safetensors").stat().st_size


def test_other_makers_models_are_listed_by_their_kind(cache: Path, tmp_path: Path) -> None:
    put(cache, "someone/eomt", write_model("eomt", tmp_path / "eomt"))
    write_model("clipseg", tmp_path / "ours" / "models" / "clipseg")
    found = {entry["name"]: entry for entry in listed()}
    assert {name: (each["origin"], each["dialect"]) for name, each in found.items() if name != "nano"} == {
        "someone/eomt": ("hub cache", "eomt"),
        "clipseg": ("pulled", "clipseg"),
    }
    assert found["clipseg"]["version"].startswith("clipseg-")
    assert "clipseg" in run("list")
    assert load_model("someone/eomt", device="cpu").version == found["someone/eomt"]["version"]
    assert load_model("clipseg", device="cpu").version == found["clipseg"]["version"]


@pytest.fixture
def released(cache: Path, shared: Callable[[str], Path]) -> Path:
    """A tiny checkpoint in the released layout."""
    put(cache, "openai/clip-vit-large-patch14", shared("facts/parity/clip-tiny"))
    return put(cache, "weic22/LaSagnA-7B", shared("facts/parity/checkpoint"))


def test_the_papers_model_by_its_short_name(released: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nor one that was pulled"):
        find_checkpoint("lasagna-7b")
    found = run("pull", "lasagna-7b")
    assert found.startswith("0 ")
    assert "use it with --model lasagna-7b" in found
    folder = tmp_path / "ours" / "models" / "lasagna-7b"
    assert find_checkpoint("lasagna-7b") == folder
    assert Lasagna.from_pretrained("lasagna-7b", device="cpu").version.startswith("lasagna-7b-")
    (entry,) = [e for e in listed() if e["origin"] == "pulled"]
    assert (entry["name"], entry["dialect"]) == ("lasagna-7b", "released")
    assert entry["version"].startswith("lasagna-7b-")
    assert "lasagna-7b" in run("list")
    assert "there already" in run("pull", "lasagna-7b")


def test_a_foreign_hub_id_says_what_to_type(released: Path) -> None:
    with pytest.raises(CheckpointError, match="type `lasagna models pull weic22/LaSagnA-7B`"):
        Lasagna.from_pretrained("weic22/LaSagnA-7B")


def test_a_damaged_download_is_noticed(released: Path, tmp_path: Path) -> None:
    weights = (released / "model.safetensors").resolve()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found = run("pull", "lasagna-7b")
    assert found.startswith("2 ")
    assert "model.safetensors: its content is not what the hub holds" in found
    assert not (tmp_path / "ours" / "models" / "lasagna-7b").exists()


def test_a_damaged_small_file_is_noticed(released: Path) -> None:
    assert verify(released) == len(list(released.iterdir()))
    (released / "config.json").resolve().write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        verify(released)


def test_what_cannot_be_fetched(cache: Path) -> None:
    assert "cannot be fetched from the hub" in run("pull", "nobody/nothing")
    assert "neither a hub id" in run("pull", "lasagna-8b")


def test_a_broken_checkpoint_is_listed_as_such(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ours" / "models" / "broken"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (entry,) = [e for e in listed() if e["name"] == "broken"]
    assert entry["version"].startswith("not usable")


def test_shipped_ones_are_listed(cache: Path) -> None:
    (entry,) = listed()
    assert (entry["name"], entry["origin"], entry["dialect"]) == ("nano", "shipped", "paper")


@pytest.mark.parametrize(
    ("text", "known"),
    [("a/b", True), ("weic22/LaSagnA-7B", True), ("a", False), ("./a", False), ("a/b/c", False), ("", False)],
)
def test_hub_ids(text: str, known: bool) -> None:
    assert is_hub_id(text) == known
