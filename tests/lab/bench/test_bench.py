"""`lasagna bench`: the reference decoders are right, wrong decoders are found out, and the command measures both."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lab.bench.command import CLASS_NAMES, sample_classes, sample_images, time_interleaved
from lab.bench.decoders import (
    ReferenceDecoding,
    bias_for_share,
    compare_decisions,
    decode_class_by_class,
    decode_token_by_token,
)
from lasagna import Lasagna
from lasagna.commands.cli import main
from lasagna.network.config import DecoderConfig, ModelConfig, VisionConfig
from lasagna.network.decoding import decode_class_lists
from lasagna.network.model import LasagnaModel
from lasagna.prompt.dialect import PromptFormat
from lasagna.prompt.sequences import Prompt, Query
from training.engine.label_tokenizer import build_tokenizer

WIDTH, IMAGE_TOKENS = 32, 6


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more only cost time at this size
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return Prompt(PromptFormat(), build_tokenizer(CLASS_NAMES, ["Can you segment the"], 600), IMAGE_TOKENS)


@pytest.fixture(scope="module")
def model(prompt: Prompt) -> LasagnaModel:
    """Random weights, large enough that decisions depend on the decisions before them."""
    torch.manual_seed(0)
    text: dict[str, Any] = {
        "vocab_size": len(prompt.tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
        "initializer_range": 0.3,
    }
    config = ModelConfig(text, VisionConfig("pyramid", 64), DecoderConfig(width=32, heads=2, mlp_dim=32))
    return LasagnaModel(config).eval()


def image_tokens(model: LasagnaModel, batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, IMAGE_TOKENS, model.encoder.token_dim, generator=generator)


def list_query(prompt: Prompt, names: list[str]) -> Query:
    return prompt.query([prompt.encode_name(name) for name in names])


@torch.inference_mode()
def decode_from_scratch(
    model: LasagnaModel, prompt: Prompt, tokens: Tensor, query: Query, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition, without a cache: the whole sequence anew for every decision. For one image."""
    answer, margins = list(query.answer), []
    for i, slot in enumerate(query.slots):
        prefix = model.prefix(prompt.before_image, tokens)
        text = model.embed([*query.question, *answer[:slot]])[None]
        sequence = torch.cat([prefix, text], 1)
        hidden = model.run(sequence, None, torch.arange(sequence.shape[1])[None], None)[:, -1]
        margins.append(model.margins(hidden, prompt.seg, prompt.neg)[0])
        answer[slot] = prompt.seg if margins[i] >= bias[i] else prompt.neg
    values = torch.stack(margins)
    return values, values >= bias


@pytest.mark.slow
@given(count=st.integers(1, 12), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=8)
def test_references_follow_the_definition(model: LasagnaModel, prompt: Prompt, count: int, seed: int) -> None:
    query, tokens = list_query(prompt, sample_classes(count)), image_tokens(model, 2, seed)
    bias = bias_for_share(model, prompt, tokens, query, 0.4)
    by_class = decode_class_by_class(model, prompt, tokens, query, bias)
    by_token = decode_token_by_token(model, prompt, tokens, query, bias)
    assert by_class.steps == count
    assert by_token.steps == len(query.answer)
    for row in range(2):
        margins, present = decode_from_scratch(model, prompt, tokens[row : row + 1], query, bias)
        for found in (by_class, by_token):
            assert torch.equal(found.present[row], present)
            torch.testing.assert_close(found.margins[row], margins, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_class.hidden, by_token.hidden, rtol=1e-4, atol=1e-4)
    assert by_class.hidden.shape == (2, count, WIDTH)


def test_decisions_matter_for_later_ones(model: LasagnaModel, prompt: Prompt) -> None:
    """Else every decoder that is right about the first class would pass."""
    query, tokens, bias = list_query(prompt, sample_classes(20)), image_tokens(model, 1), torch.zeros(20)
    nothing = decode_class_by_class(model, prompt, tokens, query, bias, given=torch.zeros(1, 20, dtype=torch.bool))
    everything = decode_class_by_class(model, prompt, tokens, query, bias, given=torch.ones(1, 20, dtype=torch.bool))
    assert torch.equal(nothing.margins[:, 0], everything.margins[:, 0])
    apart = (nothing.margins - everything.margins)[:, 1:].abs()
    assert (apart > 1e-3).all()
    assert apart.mean() > 0.05
    assert everything.present.all()


@pytest.mark.parametrize("count", [1, 2, 20, 60])
def test_bias_for_share(model: LasagnaModel, prompt: Prompt, count: int) -> None:
    query, tokens = list_query(prompt, sample_classes(count)), image_tokens(model, 1)
    bias = bias_for_share(model, prompt, tokens, query, 0.2)
    assert bias.shape == (count,)
    share = float(decode_class_by_class(model, prompt, tokens, query, bias).present.float().mean())
    if count >= 20:
        assert 0.1 <= share <= 0.3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("count", "batch"), [(1, 1), (20, 3), (80, 1)])
def test_the_product_decoder_agrees(
    model: LasagnaModel, prompt: Prompt, dtype: torch.dtype, count: int, batch: int
) -> None:
    model.to(dtype)
    try:
        query, tokens = list_query(prompt, sample_classes(count)), image_tokens(model, batch).to(dtype)
        bias = bias_for_share(model, prompt, tokens, query, 0.2)
        decoded = decode_class_lists(model, prompt, tokens, [query] * batch, range(batch), [bias] * batch)
        present = torch.stack([row.present for row in decoded.lists])
        found = compare_decisions(model, prompt, tokens, query, bias, present)
    finally:
        model.to(torch.float32)
    assert found.identical
    if dtype == torch.float32:
        assert (found.differing, found.near_ties) == (0, 0)
        assert found.noise < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_decision_is_found_out(model: LasagnaModel, prompt: Prompt, dtype: torch.dtype) -> None:
    model.to(dtype)
    try:
        query, tokens = list_query(prompt, sample_classes(20)), image_tokens(model, 2).to(dtype)
        bias = bias_for_share(model, prompt, tokens, query, 0.2)
        right: ReferenceDecoding = decode_class_by_class(model, prompt, tokens, query, bias)
        wrong = right.present.clone()
        surest = int((right.margins[1] - bias).abs().argmax())
        wrong[1, surest] = ~wrong[1, surest]
        assert compare_decisions(model, prompt, tokens, query, bias, right.present).identical
        found = compare_decisions(model, prompt, tokens, query, bias, wrong)
    finally:
        model.to(torch.float32)
    assert not found.identical
    assert found.differing >= 1


def test_a_decision_that_is_a_tie_is_counted_as_one(model: LasagnaModel, prompt: Prompt) -> None:
    query, tokens = list_query(prompt, sample_classes(5)), image_tokens(model, 1)
    free = decode_class_by_class(model, prompt, tokens, query, torch.zeros(5))
    bias = torch.zeros(5)
    bias[4] = free.margins[0, 4]  # the last decision is exactly on the threshold
    other = decode_class_by_class(model, prompt, tokens, query, bias).present.clone()
    other[0, 4] = ~other[0, 4]
    found = compare_decisions(model, prompt, tokens, query, bias, other)
    assert (found.identical, found.near_ties, found.differing) == (True, 1, 1)


def test_ways_are_timed_in_turn() -> None:
    order: list[str] = []
    times = iter(range(100))
    ways = {name: (lambda name=name: (order.append(name), next(times))) for name in ("a", "b")}
    seconds = time_interleaved(ways, 3, "cpu")
    assert order == ["a", "b"] * 4  # one round untimed
    assert set(seconds) == {"a", "b"}
    assert all(value >= 0 for value in seconds.values())


def test_samples_differ() -> None:
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 133
    assert sample_classes(133) == list(CLASS_NAMES)
    assert len(set(sample_classes(500))) == 500
    images = sample_images(7)
    assert len({image.tobytes() for image in images}) == 7
    assert all(image.ndim == 3 and image.shape[2] == 3 for image in images)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    Lasagna.random(seed=1).save_pretrained(folder)
    return folder


def run(*args: object) -> Any:
    return CliRunner().invoke(main, ["bench", "decode", "--device", "cpu", *[str(arg) for arg in args]])


@pytest.mark.slow
def test_the_command_measures_every_length_in_every_dtype(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "decode.json"
    dtypes = "float32,bfloat16"
    result = run("--model", checkpoint, "--classes", "5,20", "--dtype", dtypes, "--repeats", 1, "--json", "--out", out)
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert json.loads(out.read_text()) == measured
    assert measured["benchmark"] == "decode"
    assert measured["setting"]["model"].startswith("tiny-")
    assert {"processor", "cores", "threads", "torch", "device"} <= set(measured["environment"])
    rows = measured["rows"]
    assert [(row["dtype"], row["classes"]) for row in rows] == [
        (dtype, count) for dtype in ("float32", "bfloat16") for count in (5, 20)
    ]
    for row in rows:
        assert row["identical"] is True
        assert 1 <= row["passes"] <= row["classes"] + 1
        assert row["sequential_steps"] == row["classes"]
        assert row["generate_steps"] > row["sequential_steps"]
        assert min(row[f"seconds_{way}"] for way in ("parallel", "sequential", "generate")) > 0
    assert (rows[1]["near_ties"], rows[1]["differing"]) == (0, 0)
    assert 0.1 <= rows[1]["present"] <= 0.3


def test_the_command_prints_a_table(checkpoint: Path) -> None:
    result = run("--model", checkpoint, "--classes", 4, "--batch", 2, "--repeats", 1)
    assert result.exit_code == 0, result.output
    assert "bench decode: model tiny-" in result.stdout
    assert "images 2" in result.stdout


def test_a_wrong_decoder_fails_the_command(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lasagna.network import decoding

    def wrong(*args: Any) -> decoding.DecodedLists:
        found = decode_class_lists(*args)
        lists = [decoding.DecodedList(chunk.margins, ~chunk.present, chunk.hidden) for chunk in found.lists]
        return decoding.DecodedLists(lists, found.passes)

    monkeypatch.setattr(decoding, "decode_class_lists", wrong)
    result = run("--model", checkpoint, "--classes", 8, "--repeats", 1, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["rows"][0]["identical"] is False
    assert "not that of the class-by-class decoder" in result.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--classes", "20,x"], "not a list of whole numbers"),
        (["--classes", "0"], "at least 1"),
        (["--dtype", "float8"], "not one of float32"),
        (["--model", "no-such"], "unknown checkpoint"),
        (["--present", "1"], "0<x<1"),
    ],
    ids=["text", "zero", "dtype", "model", "share"],
)
def test_options_that_cannot_be_used(args: list[str], words: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_list_that_does_not_fit_the_context(checkpoint: Path) -> None:
    result = run("--model", checkpoint, "--classes", 500)
    assert result.exit_code == 2
    assert "was made for 4096" in result.stderr
