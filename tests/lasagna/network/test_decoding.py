"""Exact class-list decoding equals the sequential decoder: over random weights, lists, chunks and batches."""

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.bench.decoders import bias_for_share, compare_decisions, decode_class_by_class, decode_token_by_token
from lasagna import Lasagna
from lasagna.network.decoding import DecodedLists, decode_class_lists
from lasagna.network.model import cast_weights

WINDOWS = st.one_of(st.none(), st.integers(1, 400))
"""Tokens of an answer that are run at once: of less than a name, to more than any answer."""


@pytest.fixture(scope="module", params=["paper", "released"])
def dialect(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def models(dialect: str) -> list[Lasagna]:
    return [Lasagna.random(seed, dialect) for seed in range(3)]


def names(count: int, seed: int) -> list[str]:
    """Short names, so that 200 of them fit the tiny model's context byte by byte, nearly always; some share their
    beginning."""
    return [f"{random.Random(seed + i).choice('abcdexyz ')}{i}".strip() for i in range(count)]


def image_tokens(model: Lasagna, count: int, seed: int) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)
    return torch.cat([model.encode_image(image).encoded.tokens for image in pixels])


def queries(model: Lasagna, labels: list[str], chunk_size: int | None = None) -> list:
    ids = [model.prompt.encode_name(name) for name in labels]
    return [model.prompt.query([ids[i] for i in chunk]) for chunk in model.prompt.plan_chunks(ids, chunk_size)]


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2), count=st.integers(1, 200), draw=st.integers(0, 10**6), window=WINDOWS)
def test_equals_the_sequential_decoder(
    models: list[Lasagna], seed: int, count: int, draw: int, window: int | None
) -> None:
    model = models[seed]
    tokens = image_tokens(model, 1, draw)
    for query in queries(model, names(count, draw)):  # seldom more than one: the longest lists of long names
        bias = bias_for_share(model.model, model.prompt, tokens, query, 0.2, rounds=2)
        expected = decode_class_by_class(model.model, model.prompt, tokens, query, bias)
        found = decode_class_lists(model.model, model.prompt, tokens, [query], [0], [bias], window)
        assert found.lists[0].present.tolist() == expected.present[0].tolist()
        torch.testing.assert_close(found.lists[0].margins, expected.margins[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found.lists[0].hidden, expected.hidden[0], atol=2e-5, rtol=1e-4)
        assert found.passes <= len(query.slots) + (len(query.answer) // window + 1 if window else 1)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2),
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    chunk_size=st.one_of(st.none(), st.integers(1, 25)),
    draw=st.integers(0, 10**6),
    window=WINDOWS,
)
def test_batches_and_chunks_change_nothing(
    models: list[Lasagna], seed: int, counts: list[int], chunk_size: int | None, draw: int, window: int | None
) -> None:
    model = models[seed]
    tokens = image_tokens(model, len(counts), draw)
    asked, owners, biases = [], [], []
    for i, count in enumerate(counts):
        for query in queries(model, names(count, draw + i), chunk_size):
            asked.append(query)
            owners.append(i)
            biases.append(bias_for_share(model.model, model.prompt, tokens[i : i + 1], query, 0.2, rounds=2))
    found = decode_class_lists(model.model, model.prompt, tokens, asked, owners, biases, window)
    for query, owner, bias, answer in zip(asked, owners, biases, found.lists, strict=True):
        expected = decode_class_by_class(model.model, model.prompt, tokens[owner : owner + 1], query, bias)
        assert answer.present.tolist() == expected.present[0].tolist()
        torch.testing.assert_close(answer.margins, expected.margins[0], atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_decisions_feed_back_and_take_several_passes(models: list[Lasagna]) -> None:
    """Else the property above would hold for a decoder that reads every slot after an all-absent guess."""
    passes, corrected = [], 0
    for draw in range(4):
        model = models[draw % 3]
        tokens = image_tokens(model, 1, draw)
        (query,) = queries(model, names(120, draw))
        bias = bias_for_share(model.model, model.prompt, tokens, query, 0.2, rounds=2)
        found = decode_class_lists(model.model, model.prompt, tokens, [query], [0], [bias])
        nothing = torch.zeros(1, 120, dtype=torch.bool)
        first_pass = decode_class_by_class(model.model, model.prompt, tokens, query, bias, given=nothing)
        corrected += int(((first_pass.margins[0] >= bias) != found.lists[0].present).sum())
        passes.append(found.passes)
        assert 0.05 < found.lists[0].present.float().mean() < 0.5
    assert max(passes) > 2
    assert corrected > 0


@pytest.mark.slow
def test_bfloat16_differs_within_rounding_noise_only(dialect: str) -> None:
    for seed in range(3):
        model = Lasagna.random(seed, dialect)
        cast_weights(model.model, torch.bfloat16)
        tokens = image_tokens(model, 1, seed)
        (query,) = queries(model, names(133, seed))
        bias = bias_for_share(model.model, model.prompt, tokens, query, 0.2, rounds=2)
        found = decode_class_lists(model.model, model.prompt, tokens, [query], [0], [bias])
        comparison = compare_decisions(model.model, model.prompt, tokens, query, bias, found.lists[0].present[None])
        assert comparison.identical, comparison
        assert comparison.near_ties <= 10


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of torch's threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.slow
def test_several_threads_decide_as_one(models: list[Lasagna], threads: Callable[[int], None]) -> None:
    """Sums are rounded by the number of threads; decisions hold against the reference with either."""
    model = models[1]
    tokens = image_tokens(model, 1, 3)
    (query,) = queries(model, names(80, 3))
    bias = bias_for_share(model.model, model.prompt, tokens, query, 0.2)
    answers = []
    for number in (1, 3):
        threads(number)
        assert torch.get_num_threads() == number
        found = decode_class_lists(model.model, model.prompt, tokens, [query], [0], [bias])
        expected = decode_class_by_class(model.model, model.prompt, tokens, query, bias)
        assert found.lists[0].present.tolist() == expected.present[0].tolist()
        answers.append(found.lists[0].margins)
    torch.testing.assert_close(*answers, atol=2e-5, rtol=1e-4)


def test_the_two_references_agree(models: list[Lasagna]) -> None:
    model = models[0]
    tokens = image_tokens(model, 2, 5)
    (query,) = queries(model, names(20, 5))
    bias = bias_for_share(model.model, model.prompt, tokens, query, 0.2, rounds=2)
    by_class = decode_class_by_class(model.model, model.prompt, tokens, query, bias)
    by_token = decode_token_by_token(model.model, model.prompt, tokens, query, bias)
    assert torch.equal(by_class.present, by_token.present)
    assert by_token.steps > by_class.steps == 20


def test_a_wrong_decision_is_noticed(models: list[Lasagna]) -> None:
    model = models[0]
    tokens = image_tokens(model, 1, 7)
    (query,) = queries(model, names(30, 7))
    bias = bias_for_share(model.model, model.prompt, tokens, query, 0.2, rounds=2)
    found = decode_class_lists(model.model, model.prompt, tokens, [query], [0], [bias]).lists[0]
    wrong = found.present.clone()
    clearest = int((found.margins - bias).abs().argmax())
    wrong[clearest] = ~wrong[clearest]
    assert not compare_decisions(model.model, model.prompt, tokens, query, bias, wrong[None]).identical


@pytest.mark.parametrize("window", [None, 60], ids=["whole", "windows"])
def test_guesses_change_the_passes_and_nothing_else(models: list[Lasagna], window: int | None) -> None:
    model = models[1]
    tokens = image_tokens(model, 2, 11)
    asked = [query for seed in (11, 12) for query in queries(model, names(40, seed))]
    biases = [
        bias_for_share(model.model, model.prompt, tokens[i : i + 1], query, 0.3, rounds=2)
        for i, query in enumerate(asked)
    ]

    def decode(guesses: list[torch.Tensor] | None) -> DecodedLists:
        return decode_class_lists(model.model, model.prompt, tokens, asked, [0, 1], biases, window, guesses)

    plain = decode(None)
    right = [found.present for found in plain.lists]
    told, misled = decode(right), decode([~present for present in right])
    for other in (told, misled):
        for found, expected in zip(other.lists, plain.lists, strict=True):
            assert torch.equal(found.present, expected.present)
            torch.testing.assert_close(found.margins, expected.margins, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(found.hidden, expected.hidden, atol=2e-5, rtol=1e-4)
    least = 1 if window is None else sum(-(-query.slots[-1] // window) for query in asked)
    assert told.passes == least < min(plain.passes, misled.passes)
