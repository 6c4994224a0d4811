"""The sequence format: labels are data, the answer follows the query, chunks are balanced."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasagna import Lasagna, LasagnaError
from lasagna.errors import CheckpointError, QueryError
from lasagna.prompt.dialect import RELEASED, PromptFormat
from lasagna.prompt.sequences import IGNORED, IMAGE_TOKEN, Prompt, Turn

PROMPTS = {dialect: Lasagna.random(dialect=dialect).prompt for dialect in ("paper", "released")}


@pytest.fixture(params=PROMPTS)
def prompt(request: pytest.FixtureRequest) -> Prompt:
    return PROMPTS[request.param]


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
    "released decision": "cat<ins>",
    "end of the list": "cat <cat_end> ASSISTANT: dog<ins>",
    "only control tokens": "<cat_start><cat_end><semantic></s>",
    "image end": "<im_end>",
    "underscore": "_",
}


@pytest.mark.parametrize("label", AWKWARD.values(), ids=AWKWARD)
def test_a_label_is_data(prompt: Prompt, label: str) -> None:
    """It adds one slot, no control token, and leaves its neighbours' ids as they are."""
    ids = [prompt.encode_name(text) for text in ("sky", label, "road")]
    query = prompt.query(ids)
    plain = prompt.query([prompt.encode_name(text) for text in ("sky", "cat", "road")])
    control = set(prompt.tokenizer.controls.values())
    assert len(query.slots) == 3
    assert [i for i in query.question if i in control] == [i for i in plain.question if i in control]
    assert not control & {*query.answer}
    assert query.answer.count(-1) == 3
    for name, slot in zip(ids, query.slots, strict=True):
        assert query.answer[slot] == -1
        assert query.answer[slot - len(name) : slot] == name.ids
    if len(label) < 300:
        assert prompt.tokenizer.decode(ids[1].ids) == prompt.format.read_text(label)


@pytest.mark.parametrize("dialect", PROMPTS)
@given(labels=st.lists(st.text(min_size=1, max_size=20).filter(lambda t: t.strip()), min_size=1, max_size=10))
def test_any_text_gives_as_many_slots_as_labels(dialect: str, labels: list[str]) -> None:
    prompt = PROMPTS[dialect]
    names = [prompt.encode_name(label) for label in labels]
    query = prompt.query(names)
    assert len(query.slots) == len(labels)
    assert [query.answer[s - len(n) : s] for s, n in zip(query.slots, names, strict=True)] == [n.ids for n in names]


@pytest.mark.parametrize("answered", [None, [2, 0]], ids=["question order", "two of three"])
def test_a_conversation_is_the_query_with_its_decisions(prompt: Prompt, answered: list[int] | None) -> None:
    names = [prompt.encode_name(name) for name in ("sky", "traffic light", "road")]
    present = [True, False, True]
    query = prompt.query(names, 1 % len(prompt.format.questions["classes"]), answered)
    turn = prompt.class_list_turn(names, present, 1 % len(prompt.format.questions["classes"]), answered)
    whole = prompt.conversation([turn])
    decisions = iter(prompt.seg if present[i] else prompt.neg for i in (answered or range(3)))
    answer = [next(decisions) if token == -1 else token for token in query.answer]
    assert whole.ids == (*prompt.with_image(query.question), *answer, prompt.stop)
    assert whole.labels == (*[IGNORED] * (len(whole.ids) - len(answer) - 1), *answer, prompt.stop)
    assert [whole.ids[slot] == prompt.seg for slot in whole.slots] == list(whole.present)
    assert list(whole.present) == [present[i] for i in (answered or range(3))]


def test_only_answers_are_supervised(prompt: Prompt) -> None:
    turns = [
        prompt.text_turn("referring", "the Dog <SEG> on the_left"),
        prompt.text_turn("vqa", "What is <ins> here?", "A dog </s>."),
        prompt.text_turn("reasoning", "What barks?", "Dogs bark.", answer_template=1, present=False),
    ]
    whole = prompt.conversation(turns)
    assert whole.ids.count(prompt.stop) == 3
    assert whole.ids.count(IMAGE_TOKEN) == 1
    assert whole.present == (True, False)
    assert prompt.question(turns[0]) == whole.ids[len(prompt.before_image) + 1 :][: len(prompt.question(turns[0]))]
    supervised = prompt.tokenizer.decode([i for i in whole.labels if i != IGNORED])
    squeezed = supervised.replace(" ", "")
    yes, no = prompt.format.present, prompt.format.absent
    assert squeezed == f"Itis{yes}.</s>Adog</s>.</s>Dogsbark.Itis{no}.</s>"
    asked = prompt.tokenizer.decode([i for i, label in zip(whole.ids, whole.labels, strict=True) if label == IGNORED])
    assert "dog <seg> on the left" in asked
    assert "Itis" not in asked.replace(" ", "")
    assert all(i == label for i, label in zip(whole.ids, whole.labels, strict=True) if label != IGNORED)


def test_turns_are_one_text() -> None:
    """Encoding them one by one gives the ids of the whole text, which is how the released code made them."""
    prompt = PROMPTS["released"]
    form, encode = prompt.format, prompt.tokenizer.encode_template
    spoken = [
        ("What is it?", "A dog, near it."),
        ("And \n this?", "It is <ins>. "),
        ("<semantic>Go<cat_end>", "<ins>a"),
    ]
    whole = prompt.conversation([Turn((question,), (answer,)) for question, answer in spoken])
    text = form.user.join(f"{question} ASSISTANT: {answer}</s>" for question, answer in spoken)
    assert whole.ids == (*prompt.before_image, IMAGE_TOKEN, *encode(f"<im_end>\n{text}"))
    end = tuple(encode("ASSISTANT:"))
    starts = [i for i in range(len(whole.ids)) if whole.ids[i - len(end) : i] == end]
    assert len(starts) == 3
    for start in starts:
        assert whole.labels[start - 1] == IGNORED
        assert whole.labels[start] == whole.ids[start]


def test_a_long_conversation_is_cut(prompt: Prompt) -> None:
    turn = prompt.text_turn("vqa", "Why?", "because " * 50)
    whole = prompt.conversation([turn], max_length=60)
    assert len(whole.ids) + prompt.image_tokens - 1 == 60
    assert len(whole.labels) == len(whole.ids)


def test_a_task_that_was_not_trained_is_refused() -> None:
    format = PromptFormat(questions={"classes": ("Segment <classes>.",)}, answers={})
    prompt = Prompt(format, PROMPTS["paper"].tokenizer, 4)
    with pytest.raises(QueryError, match="class lists: name the classes"):
        prompt.text_turn("vqa", "What is this?")


def test_the_text_is_that_of_the_paper() -> None:
    prompt = PROMPTS["paper"]
    query = prompt.query([prompt.encode_name(name) for name in ("sky", "road")])
    decode = prompt.tokenizer.decode
    assert decode(prompt.before_image) + "<image>" + decode(list(query.question)) == (
        "<s>USER: <image> Can you segment the sky, road in this image? ASSISTANT: "
    )
    filled = [prompt.neg if token == -1 else token for token in query.answer]
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"questions": {"classes": ("Segment all.",)}}, "needs <classes> once"),
        ({"questions": {"classes": ("<classes> and <classes>",)}}, "needs <classes> once"),
        ({"questions": {"classes": ("<classes>",), "vqa": ("What?",)}}, "needs <text> once"),
        ({"questions": {"vqa": ("<text>",)}}, "a wording for 'classes'"),
        ({"questions": {"classes": ("<classes>",), "ocr": ("<text>",)}}, "unknown task 'ocr'"),
        ({"image": "no place"}, "needs <image> once"),
    ],
)
def test_a_format_without_its_places_is_refused(values: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        PromptFormat(**values)


def test_a_token_that_the_vocabulary_lacks_is_named() -> None:
    with pytest.raises(CheckpointError, match="no token <ins>"):
        Prompt(RELEASED, PROMPTS["paper"].tokenizer, 4)


def test_a_format_comes_back_from_its_file(prompt: Prompt, tmp_path: Path) -> None:
    prompt.format.save(tmp_path / "prompt.json")
    assert PromptFormat.load(tmp_path / "prompt.json") == prompt.format


def test_prompt_errors_are_ours() -> None:
    assert issubclass(CheckpointError, LasagnaError)
