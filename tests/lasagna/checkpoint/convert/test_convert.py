"""Foreign layouts become the same model, and answers come out of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lasagna import Lasagna
from lasagna.checkpoint.convert import convert
from lasagna.checkpoint.folder import checkpoint_version
from lasagna.checkpoint.weights import load_model
from lasagna.commands.cli import main
from lasagna.errors import CheckpointError
from lasagna.network.adapter import load_adapter
from lasagna.network.model import LasagnaModel
from lasagna.prompt.dialect import RELEASED, RELEASED_TOKENS

from . import foreign as made


def same(a: LasagnaModel, b: LasagnaModel, without: tuple[str, ...] = ("nothing",)) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    keys = {key for key in mine if not key.startswith(without)}
    assert keys == {key for key in theirs if not key.startswith(without)}
    return all(torch.equal(mine[key], theirs[key]) for key in keys)


def test_the_released_layout(released: Path, network: LasagnaModel, tmp_path: Path) -> None:
    done = convert(released, tmp_path / "out", clip=tmp_path / "clip")
    assert done.kind == "the released LaSagnA layout"
    assert same(load_model(tmp_path / "out"), network)
    model = Lasagna.from_pretrained(tmp_path / "out")
    assert model.format == replace(RELEASED, max_length=512)
    image = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    answer = model.segment(image, ["wall", "sky", "<ins>"], threshold=0.01)
    assert [a.name for a in answer.classes] == ["wall", "sky", "<ins>"]
    assert all(a.mask.shape == (40, 90) for a in answer.present)
    dtypes = {key: value.dtype for key, value in load_file(tmp_path / "out" / "model.safetensors").items()}
    assert dtypes["lm_head.weight"] == torch.bfloat16
    assert dtypes["encoder.sam.pos_embed"] == dtypes["prompt_projection.0.weight"] == torch.float32


def test_loading_in_half_precision_keeps_positions_exact(released: Path, network: LasagnaModel, tmp_path: Path) -> None:
    convert(released, tmp_path / "out", clip=tmp_path / "clip")
    half = load_model(tmp_path / "out", "cpu", torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    buffers, known = dict(half.named_buffers()), dict(network.named_buffers())
    assert buffers.keys() == known.keys()
    assert all(torch.equal(buffers[key], known[key]) for key in known)


def test_from_the_command_line(released: Path, tmp_path: Path, photos: dict[str, Path]) -> None:
    """CLIP's folder is the one that config.json names."""
    run = CliRunner().invoke(main, ["models", "convert", str(released), str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    assert "released LaSagnA layout" in run.output
    arguments = ["annotate", str(photos["cat"]), "--labels", "wall,sky", "--model", str(tmp_path / "out")]
    run = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "annotated"), "--device", "cpu"])
    assert run.exit_code == 0, run.output
    report = json.loads((tmp_path / "annotated" / "report.json").read_text())
    assert [c["name"] for c in report["images"][0]["classes"]] == ["wall", "sky"]
    run = CliRunner().invoke(main, ["annotate", str(photos["cat"]), "--labels", "a", "--model", str(released)])
    assert "--out" in run.output


def test_an_unconverted_folder_says_what_to_type(released: Path) -> None:
    with pytest.raises(CheckpointError, match=r"released code; type `lasagna models convert .* NEW_FOLDER`"):
        Lasagna.from_pretrained(released)


def test_many_shards(released: Path, network: LasagnaModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lasagna.checkpoint.convert.writer.SHARD_BYTES", 20_000)
    convert(released, tmp_path / "out", clip=tmp_path / "clip")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index == {key: path.name for path in shards for key in load_file(path)}
    assert same(load_model(tmp_path / "out"), network)


def test_the_version_needs_no_reading_and_notices_changes(released: Path, tmp_path: Path) -> None:
    convert(released, tmp_path / "out", clip=tmp_path / "clip")
    noted = checkpoint_version(tmp_path / "out")
    (tmp_path / "out" / "checksums.json").unlink()
    assert checkpoint_version(tmp_path / "out") == noted
    convert(released, tmp_path / "b" / "out", clip=tmp_path / "clip")
    assert checkpoint_version(tmp_path / "b" / "out") == noted
    weights = load_file(tmp_path / "b" / "out" / "model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, tmp_path / "b" / "out" / "model.safetensors")
    assert checkpoint_version(tmp_path / "b" / "out") != noted


# ------------------------------------------------------------------------------------------------------- fresh starts


def to_hugging_face(weights: dict[str, Tensor], clip: dict[str, Tensor], nested: bool) -> dict[str, Tensor]:
    """transformers' LLaVA, before and after its model was nested."""
    renamed = {}
    for key, value in weights.items():
        if "rotary" in key:
            continue
        if key.startswith("model.mm_projector."):
            number = {"0": "linear_1", "2": "linear_2"}[key.split(".")[2]]
            name = f"multi_modal_projector.{number}.{key.split('.')[3]}"
            renamed[f"model.{name}" if nested else name] = value
        elif nested:
            renamed[key.replace("model.", "model.language_model.", 1)] = value
        else:
            renamed[f"language_model.{key}"] = value
    return renamed | {f"{'model.' if nested else ''}vision_tower.{k}": v for k, v in clip.items()}


STARTS = ["v1", "v1.5", "llava-hf", "llava-hf nested"]


@pytest.mark.parametrize("layout", STARTS)
def test_fresh_starts(layout: str, network: LasagnaModel, sam_file: Path, tmp_path: Path) -> None:
    made.write_clip(tmp_path / "clip", network)
    clip: Path | None = tmp_path / "clip"
    weights = made.llava(network, 402)
    config = {"model_type": "llava", **made.TEXT, "vocab_size": 402, "mm_hidden_size": 16}
    if layout != "v1":
        torch.manual_seed(1)
        for i, width in (("0", 16), ("2", 32)):
            weights[f"model.mm_projector.{i}.weight"] = torch.randn(32, width).bfloat16()
            weights[f"model.mm_projector.{i}.bias"] = torch.randn(32).bfloat16()
        del weights["model.mm_projector.weight"], weights["model.mm_projector.bias"]
    if layout.startswith("llava-hf"):
        weights = to_hugging_face(weights, made.clip_weights(network), "nested" in layout)
        config = {
            "model_type": "llava",
            "text_config": {"model_type": "llama", **made.TEXT},
            "vision_config": {"model_type": "clip_vision_model", **made.CLIP},
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
        }
        clip = None
    # Two of the dialect's tokens are there already, as in LLaVA v1.
    source = made.write_llava(tmp_path / "llava", weights, config, {"<im_start>": 400, "<im_end>": 401})
    done = convert(source, tmp_path / "out", clip=clip, sam=sam_file)
    assert "fresh start" in done.kind
    assert any("at random" in note for note in done.notes)
    model = Lasagna.from_pretrained(tmp_path / "out")
    assert same(model.model, network, ("language_model.embed", "lm_head", "prompt_projection", "projector"))
    controls = model.tokenizer.controls
    assert (controls["<im_start>"], controls["<im_end>"]) == (400, 401)
    assert sorted(controls[token] for token in RELEASED_TOKENS) == list(range(400, 407))
    rows = model.model.lm_head.weight
    assert torch.equal(rows[:402], network.lm_head.weight[:402])
    mean = network.lm_head.weight[:400].mean(0).bfloat16().float()
    torch.testing.assert_close(rows[402:], mean.expand(5, -1), rtol=0, atol=1e-3)
    assert isinstance(model.model.projector, nn.Linear if layout == "v1" else nn.Sequential)
    again = convert(source, tmp_path / "again" / "out", clip=clip, sam=sam_file)
    assert checkpoint_version(again.folder) == checkpoint_version(done.folder)


def test_padded_embeddings_keep_their_rows(network: LasagnaModel, sam_file: Path, tmp_path: Path) -> None:
    """transformers' LLaVA pads its vocabulary: new tokens take rows that are there."""
    made.write_clip(tmp_path / "clip", network)
    weights = made.llava(network, 402)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[key] = torch.cat([weights[key], torch.zeros(30, 32, dtype=torch.bfloat16)])
    source = made.write_llava(tmp_path / "llava", weights, {**made.TEXT, "model_type": "llava"}, {"<image>": 400})
    convert(source, tmp_path / "out", clip=tmp_path / "clip", sam=sam_file)
    model = Lasagna.from_pretrained(tmp_path / "out")
    assert len(model.model.lm_head.weight) == 432
    assert len(model.tokenizer) == 408
    assert model.model.lm_head.weight[401:408].abs().sum(1).min() > 0
    assert model.model.lm_head.weight[408:].abs().max() == 0


def test_clip_with_its_text_tower(released: Path, network: LasagnaModel, tmp_path: Path) -> None:
    clip = tmp_path / "full"
    clip.mkdir()
    others = ("logit_scale", "text_model.embeddings.weight", "visual_projection.weight", "text_projection.weight")
    weights = made.clip_weights(network) | {key: torch.ones(2, 2) for key in others}
    made.save(weights, clip / "m.safetensors")
    made.write_json(clip / "config.json", {"model_type": "clip", "vision_config": made.CLIP, "text_config": {}})
    convert(released, tmp_path / "out", clip=clip)
    assert same(load_model(tmp_path / "out"), network)


def test_clip_without_a_prefix(released: Path, network: LasagnaModel, tmp_path: Path) -> None:
    clip = tmp_path / "bare"
    clip.mkdir()
    weights = {key.removeprefix("vision_model."): value for key, value in made.clip_weights(network).items()}
    made.save(weights, clip / "model.safetensors")
    made.write_json(clip / "config.json", made.CLIP)
    convert(released, tmp_path / "out", clip=clip)
    assert same(load_model(tmp_path / "out"), network)


# ----------------------------------------------------------------------------------------------------------------- LoRA


def assert_changed(folder: Path, network: LasagnaModel, changed: dict[str, Tensor]) -> None:
    state = load_model(folder).state_dict()
    for key, value in network.state_dict().items():
        rounding = 8e-3 if key in changed else 0  # to bfloat16, before or after
        torch.testing.assert_close(state[key], changed.get(key, value), rtol=rounding, atol=0)
        if key in changed:
            assert not torch.equal(state[key], value)


@pytest.mark.parametrize("keep", [False, True], ids=["merged", "kept"])
@pytest.mark.parametrize("naming", ["old", "base_layer"])
def test_lora_in_the_checkpoint(
    keep: bool, naming: str, released: Path, network: LasagnaModel, tmp_path: Path, change_weights: Callable
) -> None:
    factors, changed = made.low_rank(network, 16.0)

    def unmerge(weights: dict[str, Tensor]) -> None:
        for key in list(weights):
            name = key
            if naming == "base_layer" and f"language_{key}" in changed:
                name = key.replace(".weight", ".base_layer.weight")
            weights[f"base_model.model.{name}"] = weights.pop(key)
        weights |= {f"base_model.model.{key}.default.weight": value for key, value in factors.items()}

    change_weights(released, unmerge)
    done = convert(released, tmp_path / "out", clip=tmp_path / "clip", keep_adapter=keep)
    assert any(("kept" if keep else "merged") in note for note in done.notes)
    assert_changed(tmp_path / "out", network, changed)
    assert (load_adapter(tmp_path / "out") is not None) == keep
    if keep:
        before = checkpoint_version(tmp_path / "out")
        weights = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
        weights[next(iter(weights))] += 1
        save_file(weights, tmp_path / "out" / "adapter" / "adapter_model.safetensors")
        assert checkpoint_version(tmp_path / "out") != before


def test_an_adapter_folder(released: Path, network: LasagnaModel, tmp_path: Path) -> None:
    factors, changed = made.low_rank(network, 8.0)
    adapter = made.write_adapter(tmp_path / "lora", factors, 8.0)
    convert(released, tmp_path / "merged", clip=tmp_path / "clip", adapter=adapter)
    assert_changed(tmp_path / "merged", network, changed)
    # onto a checkpoint of ours
    convert(released, tmp_path / "ours", clip=tmp_path / "clip")
    convert(tmp_path / "ours", tmp_path / "tuned", adapter=adapter, keep_adapter=True)
    assert_changed(tmp_path / "tuned", network, changed)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_kept_adapter_is_pefts(released: Path, network: LasagnaModel, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    factors, changed = made.low_rank(network, 8.0)
    adapter = made.write_adapter(tmp_path / "lora", factors, 8.0)
    convert(released, tmp_path / "out", clip=tmp_path / "clip", adapter=adapter, keep_adapter=True)
    convert(released, tmp_path / "plain", clip=tmp_path / "clip")
    base = load_model(tmp_path / "plain").language_model
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    merged = {f"language_model.{k}": v for k, v in wrapped.merge_and_unload().state_dict().items()}
    for key, value in changed.items():
        torch.testing.assert_close(merged[key], value, rtol=8e-3, atol=0)


def test_rounding_to_bfloat16(released: Path, network: LasagnaModel, tmp_path: Path, change_weights: Callable) -> None:
    change_weights(released, lambda weights: weights.update({k: v.float() for k, v in weights.items()}))
    convert(released, tmp_path / "full", clip=tmp_path / "clip")
    convert(released, tmp_path / "half", clip=tmp_path / "clip", bfloat16=True)
    full, half = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "half"))
    assert full["lm_head.weight"].dtype == torch.float32
    assert half["lm_head.weight"].dtype == torch.bfloat16
    assert half["encoder.sam.pos_embed"].dtype == torch.float32
    assert same(load_model(tmp_path / "half"), network)
