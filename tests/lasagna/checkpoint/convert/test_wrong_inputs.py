"""Inputs of a conversion that are wrong: each a clear message, nothing half-written, no code run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lasagna.checkpoint.convert import convert
from lasagna.errors import CheckpointError, ConfigError
from lasagna.network.model import LasagnaModel
from lasagna.prompt.dialect import RELEASED_TOKENS
from tests.forked import run_forked

from . import foreign as made


def json_of(path: Path, **changes: object) -> None:
    values = {**json.loads(path.read_text()), **changes}
    made.write_json(path, {key: value for key, value in values.items() if value is not None})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Evil:
    def __reduce__(self) -> tuple:
        return (print, ("a pickle ran code",))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "LISA": (
        lambda f: made.write_json(f / "added_tokens.json", {"[SEG]": 400, "<im_start>": 401, "<im_end>": 402}),
        "LISA checkpoint",
    ),
    "no added tokens": (lambda f: (f / "added_tokens.json").unlink(), "has no added tokens"),
    "one token less": (
        lambda f: made.write_json(
            f / "added_tokens.json", {t: 400 + i for i, t in enumerate(RELEASED_TOKENS) if t != "<no_ins>"}
        ),
        "lacks <no_ins>",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "no tokenizer.model"),
    "another tokenizer": (
        lambda f: made.write_json(f / "added_tokens.json", {t: 900 + i for i, t in enumerate(RELEASED_TOKENS)}),
        "ids up to 906, the embeddings 407 rows",
    ),
    "13B": (
        lambda f: json_of(f / "config.json", hidden_size=5120, num_hidden_layers=40, num_attention_heads=40),
        r"40 layers of width 5120 \(13B\), the weights are 2 layers of width 32",
    ),
    "a size that is no number": (lambda f: json_of(f / "config.json", hidden_size="wide"), r"config\.json: "),
    "other inner width": (lambda f: json_of(f / "config.json", intermediate_size=60), "6 weights do not fit"),
    "a shard cut short": (
        lambda f: truncate(f / "pytorch_model-00002-of-00002.bin"),
        r"00002\.bin: cannot be read; it is cut short",
    ),
    "a shard missing": (
        lambda f: (f / "pytorch_model-00001-of-00002.bin").unlink(),
        "1 of 2 shards are missing: pytorch_model-00001",
    ),
    "a shard empty": (lambda f: (f / "pytorch_model-00001-of-00002.bin").write_bytes(b""), "cut short or damaged"),
    "code in a pickle": (
        lambda f: torch.save({"a": Evil()}, f / "pytorch_model-00001-of-00002.bin"),
        "could run code",
    ),
    "an index that leaves the folder": (
        lambda f: made.write_json(f / "pytorch_model.bin.index.json", {"weight_map": {"a": "../x.bin"}}),
        "has a folder in it",
    ),
    "a broken index": (lambda f: (f / "pytorch_model.bin.index.json").write_text("{"), "not an index"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "a broken config": (lambda f: (f / "config.json").write_text("{"), "not readable as JSON"),
    "features of CLIP's class token": (
        lambda f: json_of(f / "config.json", mm_vision_select_feature="cls_patch"),
        "reads 'cls_patch'",
    ),
    "another CLIP": (
        lambda f: json_of(f.parent / "clip" / "config.json", hidden_size=24),
        "takes vision tokens of width 16, this CLIP gives 24",
    ),
    "a CLIP of other pixels": (
        lambda f: made.write_json(f.parent / "clip" / "preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}),
        "image_mean is",
    ),
    "CLIP cut short": (lambda f: truncate(f.parent / "clip" / "model.safetensors"), "cut short or damaged"),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG)
def test_wrong_inputs(
    spoil: Callable[[Path], object], message: str, released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(released)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=message):
        convert(released, tmp_path / "out", clip=tmp_path / "clip")
    assert set(tmp_path.rglob("*")) == before, "something was left"
    assert "ran code" not in capsys.readouterr().out


def test_every_key_that_does_not_fit_is_listed(released: Path, tmp_path: Path, change_weights: Callable) -> None:
    def spoil(weights: dict[str, Tensor]) -> None:
        weights["model.layers.1.mlp.gate_projection.weight"] = weights.pop("model.layers.1.mlp.gate_proj.weight")
        del weights["model.text_hidden_fcs.0.2.bias"]
        weights["model.norm.weight"] = torch.zeros(31)
        weights["model.extra"] = torch.zeros(1)

    change_weights(released, spoil)
    with pytest.raises(CheckpointError) as found:
        convert(released, tmp_path / "out", clip=tmp_path / "clip")
    lines = str(found.value).splitlines()
    assert "5 weights do not fit" in lines[0]
    assert "  missing language_model.layers.1.mlp.gate_proj.weight" in lines
    assert "  missing prompt_projection.2.bias" in lines
    assert any("unexpected language_model.layers.1.mlp.gate_projection.weight" in line for line in lines)
    assert any("model.safetensors: model.extra" in line for line in lines)
    assert any("language_model.norm.weight is (31,), the model needs (32,)" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_no_number(released: Path, tmp_path: Path, change_weights: Callable) -> None:
    change_weights(released, lambda w: w["model.norm.weight"].fill_(float("nan")))
    before = set(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"model.norm.weight: a weight is not finite"):
        convert(released, tmp_path / "out", clip=tmp_path / "clip")
    assert set(tmp_path.iterdir()) == before


def test_no_room(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    before = set(tmp_path.iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(ConfigError, match="no room"):
        convert(released, tmp_path / "out", clip=tmp_path / "clip")
    assert set(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_disk_that_fills_up_while_writing(
    released: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A real limit on the size of files, in a process of its own."""
    told, before = tmp_path_factory.mktemp("told"), set(tmp_path.iterdir())
    run = run_forked(["models", "convert", released, tmp_path / "out"], told, largest_file=50_000)
    assert run.returncode == 2, run.stderr
    assert "cannot be written" in run.stderr
    assert "Traceback" not in run.stderr
    assert set(tmp_path.iterdir()) == before


def test_targets_and_options_that_cannot_be(released: Path, sam_file: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    (tmp_path / "full").mkdir()
    with pytest.raises(ConfigError, match="already; remove it"):
        convert(released, tmp_path / "full", clip=clip)
    with pytest.raises(ConfigError, match="leave --sam out"):
        convert(released, tmp_path / "out", clip=clip, sam=sam_file)
    with pytest.raises(CheckpointError, match="with --clip"):
        convert(released, tmp_path / "out")
    with pytest.raises(CheckpointError, match="not a folder"):
        convert(released / "config.json", tmp_path / "out")
    convert(released, tmp_path / "ours", clip=clip)
    with pytest.raises(ConfigError, match="in our layout already"):
        convert(tmp_path / "ours", tmp_path / "out")


def test_llava_needs_sam(network: LasagnaModel, tmp_path: Path) -> None:
    made.write_clip(tmp_path / "clip", network)
    config = {**made.TEXT, "model_type": "llava"}
    source = made.write_llava(tmp_path / "llava", made.llava(network, 402), config, {})
    with pytest.raises(CheckpointError, match="--sam sam_vit_h"):
        convert(source, tmp_path / "out", clip=tmp_path / "clip")


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((4, 40), {}, "made for another model"),
        ((4, 32), {"use_dora": True}, "only plain LoRA"),
        ((4, 32), {"lora_alpha": None}, "not a peft configuration"),
    ],
    ids=["another size", "another kind", "incomplete"],
)
def test_adapters_that_do_not_fit(
    shape: tuple[int, int], config: dict, message: str, released: Path, network: LasagnaModel, tmp_path: Path
) -> None:
    factors, _ = made.low_rank(network, 8.0)
    factors["model.layers.0.self_attn.q_proj.lora_A"] = torch.zeros(shape)
    adapter = made.write_adapter(tmp_path / "lora", factors, 8.0, **config)
    with pytest.raises(CheckpointError, match=message):
        convert(released, tmp_path / "out", clip=tmp_path / "clip", adapter=adapter)
    assert not (tmp_path / "out").exists()
