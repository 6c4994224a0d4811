"""Every text of the released code gives the released code's ids."""

import json
from pathlib import Path
from typing import Any

import pytest

from lasagna.prompt.dialect import RELEASED
from lasagna.prompt.sequences import IMAGE_TOKEN, Prompt, Turn
from lasagna.prompt.tokenizer import SentencePieceTokenizer


@pytest.fixture(scope="module")
def text(vectors: Path) -> dict[str, Any]:
    return json.loads((vectors / "text.json").read_text())


@pytest.fixture(scope="module")
def prompt(vectors: Path) -> Prompt:
    return Prompt(RELEASED, SentencePieceTokenizer.load(vectors / "checkpoint"), 256)


def whole(prompt: Prompt, text: str) -> list[int]:
    """The ids of a text that holds the image's place."""
    before, after = text.split("<image>")
    encode = prompt.tokenizer.encode_template
    return [prompt.tokenizer.bos, *encode(before), IMAGE_TOKEN, *encode(after)]


def test_control_tokens(prompt: Prompt, text: dict[str, Any]) -> None:
    assert prompt.tokenizer.controls == text["special_ids"]
    assert len(prompt.tokenizer) == text["vocab"]
    assert text["IMAGE_TOKEN_INDEX"] == IMAGE_TOKEN


def test_cases(prompt: Prompt, text: dict[str, Any]) -> None:
    for name, case in text["cases"].items():
        assert whole(prompt, case["prompt_generate"]) == case["ids_generate"], name
        assert whole(prompt, case["prompt_train"]) == case["ids_train"], name
        question = case["question"].removeprefix("<image>\n")
        turn = Turn((question,), (case["answer"],))
        assert list(prompt.with_image(prompt.question(turn))) == case["ids_generate"], name
        conversation = prompt.conversation([turn])
        assert list(conversation.ids) == case["ids_train"], name
        assert list(conversation.labels) == case["labels_train"], name
        assert sum(conversation.present) == case["n_ins"], name


def test_cases_built_from_data(prompt: Prompt, text: dict[str, Any]) -> None:
    for name, case in text["cases"].items():
        if case["classes"]:
            names = [prompt.encode_name(label) for label in case["classes"]]
            turn = prompt.class_list_turn(names, [label in case["positives"] for label in case["classes"]])
            query = prompt.query(names)
            assert list(prompt.with_image(query.question)) == case["ids_generate"], name
        elif case["n_ins"]:
            phrase = case["question"].split("segment the ")[1].removesuffix(" in this image?")
            turn = prompt.text_turn("referring", phrase)
        else:
            turn = prompt.text_turn("vqa", case["question"].removeprefix("<image>\n"), case["answer"])
        conversation = prompt.conversation([turn])
        assert list(conversation.ids) == case["ids_train"], name
        assert list(conversation.labels) == case["labels_train"], name


def test_wordings(prompt: Prompt, text: dict[str, Any]) -> None:
    names = [prompt.encode_name(label) for label in ("wall", "traffic light", "sky")]
    known = [f"<image>\n{wording}".replace("<classes>", "{all_class}") for wording in RELEASED.questions["classes"]]
    for wording in text["templates_sem"]:
        assert whole(prompt, wording["prompt"]) == wording["ids"]
        if wording["template"] in known:
            query = prompt.query(names, known.index(wording["template"]))
            assert list(prompt.with_image(query.question)) == wording["ids"]
    assert known[0] == text["templates_sem"][0]["template"]


def test_edges(prompt: Prompt, text: dict[str, Any]) -> None:
    for edge in text["edge"]:
        ids = prompt.tokenizer.encode_template(edge["text"])
        assert ids == edge["ids_no_special"], edge
        assert [prompt.tokenizer.bos, *ids] == edge["ids"], edge
        assert prompt.tokenizer.decode([prompt.tokenizer.bos, *ids]) == edge["decoded"], edge


def test_generated_texts(prompt: Prompt, vectors: Path) -> None:
    for name, case in json.loads((vectors / "generate.json").read_text()).items():
        assert prompt.tokenizer.decode(case["output_ids"]) == case["text"], name


def test_training_conversations(prompt: Prompt, vectors: Path) -> None:
    """Rows of a batch, padded on the right; the labels of padding are not compared, since nothing is read there."""
    from safetensors.torch import load_file

    tensors = load_file(vectors / "train.safetensors")
    for name, batch in json.loads((vectors / "train.json").read_text()).items():
        for row, conversation in enumerate(batch.get("conversations", [])):
            question, answer = conversation.split("<im_end>\n")[1].split(" ASSISTANT: ")
            made = prompt.conversation([Turn((question,), (answer.removesuffix("</s>"),))])
            kept = tensors[f"{name}.attention_masks"][row]
            assert list(made.ids) == tensors[f"{name}.input_ids"][row][kept].tolist(), conversation
            assert list(made.labels) == tensors[f"{name}.labels"][row][kept].tolist(), conversation
