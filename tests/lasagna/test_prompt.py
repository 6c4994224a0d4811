"""The sequence format: labels are data, the answer follows the query, chunks are balanced."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasagna import Lasagna, LasagnaError
from lasagna.errors import CheckpointError, QueryError
from lasagna.prompt import Prompt, PromptFormat


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return Lasagna.random().prompt


AWKWARD = {
    "comma": "salt, pepper",
    "decision": "cat<SEG>",
    "negation": "<NEG>",
    "end": "</s>",
    "image": "<image>",
    "classes": "<classes>",
    "quotes": '"it\'s"',
    "newline": "a\nb",
    "unicode": "日本語 ラベル",
    "emoji": "🐈‍⬛",
    "punctuation": "...",
    "long": "x" * 300,
    "braces": "{c1, c2}",
    "template": "cat in this image? ASSISTANT: dog",
}


@pytest.mark.parametrize("label", AWKWARD.values(), ids=AWKWARD)
def test_a_label_is_data(prompt: Prompt, label: str) -> None:
    """It adds one slot, no control token, and leaves its neighbours' ids as they are."""
    ids = [prompt.encode_name(text) for text in ("sky", label, "road")]
    query = prompt.query(ids)
    control = {prompt.tokenizer.seg, prompt.tokenizer.neg, prompt.tokenizer.eos, prompt.tokenizer.bos}
    assert len(query.slots) == 3
    assert not control & {*query.question, *query.answer}
    assert query.answer.count(-1) == 3
    for name, slot in zip(ids, query.slots, strict=True):
        assert query.answer[slot] == -1
        assert query.answer[slot - len(name) : slot] == name
    if len(label) < 300:
        assert prompt.tokenizer.decode(list(ids[1])) == prompt.format.read_text(label)


@given(st.lists(st.text(min_size=1, max_size=20).filter(lambda t: t.strip()), min_size=1, max_size=10))
def test_any_text_gives_as_many_slots_as_labels(labels: list[str]) -> None:
    prompt = PROMPT
    ids = [prompt.encode_name(label) for label in labels]
    query = prompt.query(ids)
    assert len(query.slots) == len(labels)
    assert [query.answer[s - len(n) : s] for s, n in zip(query.slots, ids, strict=True)] == ids


PROMPT = Lasagna.random().prompt


def test_the_text_is_that_of_the_paper(prompt: Prompt) -> None:
    query = prompt.query([prompt.encode_name(name) for name in ("sky", "road")])
    decode = prompt.tokenizer.decode
    assert decode(prompt.before_image) + "<image>" + decode(list(query.question)) == (
        "<s>USER: <image> Can you segment the sky, road in this image? ASSISTANT: "
    )
    filled = [prompt.tokenizer.neg if token == -1 else token for token in query.answer]
    assert decode(filled) == "sky<NEG>, road<NEG>."


def test_lower_case_and_underscores_are_read_alike(prompt: Prompt) -> None:
    assert prompt.encode_name("Traffic_Light") == prompt.encode_name("traffic light")


@pytest.mark.parametrize(
    ("count", "chunk_size", "sizes"),
    [
        (1, None, [1]),
        (10, None, [10]),
        (10, 4, [3, 4, 3]),
        (10, 1, [1] * 10),
        (7, 100, [7]),
    ],
    ids=["one", "whole", "balanced", "single", "larger than the list"],
)
def test_chunks(prompt: Prompt, count: int, chunk_size: int | None, sizes: list[int]) -> None:
    names = [prompt.encode_name(f"class {i}") for i in range(count)]
    plan = prompt.plan_chunks(names, chunk_size)
    assert [len(chunk) for chunk in plan] == sizes
    assert [i for chunk in plan for i in chunk] == list(range(count))


def test_a_list_over_the_context_is_cut_into_the_fewest_chunks() -> None:
    model = Lasagna.random()
    prompt = Prompt(PromptFormat(max_length=600), model.tokenizer, 4)
    names = [prompt.encode_name(f"class number {i}") for i in range(60)]
    plan = prompt.plan_chunks(names)
    assert len(plan) > 1
    assert all(prompt.length([names[i] for i in chunk]) <= 600 for chunk in plan)
    assert max(map(len, plan)) - min(map(len, plan)) <= 1
    fewer = [names[i : i + -(-60 // (len(plan) - 1))] for i in range(0, 60, -(-60 // (len(plan) - 1)))]
    assert any(prompt.length(chunk) > 600 for chunk in fewer)


def test_chunk_size_zero_is_refused(prompt: Prompt) -> None:
    with pytest.raises(QueryError, match="at least 1"):
        prompt.plan_chunks([prompt.encode_name("a")], 0)


@pytest.mark.parametrize("template", ["<image> only", "<classes> only", "<image><image><classes>"])
def test_a_template_without_its_places_is_refused(template: str) -> None:
    with pytest.raises(CheckpointError, match="once each"):
        PromptFormat(templates=(template,))


def test_prompt_errors_are_ours() -> None:
    assert issubclass(CheckpointError, LasagnaError)
