"""LLaVA-Instruct-150k, written as it is published."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lasagna.errors import DataError
from training.data.sources.vqa import LlavaInstruct


def write(root: Path, *conversations: list[tuple[str, str]]) -> Path:
    items: list[dict[str, Any]] = []
    for turns in conversations:
        said = [{"from": speaker, "value": value} for speaker, value in turns]
        items.append({"id": "000000033471", "image": "000000033471.jpg", "conversations": said})
    path = root / "llava_dataset" / "llava_instruct_150k.json"
    path.parent.mkdir()
    path.write_text(json.dumps(items))
    (root / "coco" / "train2017").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "coco" / "train2017" / "000000033471.jpg")
    return path


GOOD = {
    "one question": ([("human", "What?\n<image>"), ("gpt", "A bus. ")], (("What?", "A bus."),)),
    "token first": ([("human", "<image>\nWhat?"), ("gpt", "A bus.")], (("What?", "A bus."),)),
    "two questions": (
        [("human", "What?\n<image>"), ("gpt", "A bus."), ("human", "Its colour?"), ("gpt", "Red.")],
        (("What?", "A bus."), ("Its colour?", "Red.")),
    ),
    "gpt first": ([("gpt", "Hello."), ("human", "What?"), ("gpt", "A bus.")], (("What?", "A bus."),)),
}
BAD = {
    "no answer": ([("human", "What?"), ("gpt", "A bus."), ("human", "And?")], "take turns: human, gpt, human"),
    "two questions at once": (
        [("human", "What?"), ("human", "Why?"), ("gpt", "A bus.")],
        "take turns: human, human, gpt",
    ),
    "somebody else": ([("human", "What?"), ("system", "A bus.")], "take turns: human, system"),
    "nothing but the token": ([("human", "<image>"), ("gpt", "A bus.")], "without text"),
    "nobody": ([], "nobody speaks"),
}


@pytest.mark.parametrize("case", GOOD)
def test_turns(tmp_path: Path, case: str) -> None:
    conversation, turns = GOOD[case]
    write(tmp_path, conversation)
    source = LlavaInstruct(tmp_path, "train")
    record = source[0]
    assert (len(source), source.classes, source.skipped) == (1, (), {})
    assert (record.turns, record.classes, record.texts, record.labels) == (turns, (), (), None)
    assert record.image_path == tmp_path / "coco" / "train2017" / "000000033471.jpg"


@pytest.mark.parametrize("case", BAD)
def test_a_broken_conversation_is_left_out_and_listed(tmp_path: Path, case: str) -> None:
    conversation, reason = BAD[case]
    write(tmp_path, GOOD["one question"][0], conversation, GOOD["two questions"][0])
    source = LlavaInstruct(tmp_path, "train")
    assert [source[i].image_id for i in range(len(source))] == ["000000033471-0", "000000033471-2"]
    assert list(source.skipped) == ["000000033471-1"]
    assert reason in source.skipped["000000033471-1"]


def test_a_conversation_without_a_photo(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD["one question"][0])
    items = json.loads(path.read_text())
    del items[0]["image"]
    path.write_text(json.dumps(items))
    assert LlavaInstruct(tmp_path, "train")[0].image_path is None


@pytest.mark.parametrize("missing", ["llava_dataset/llava_instruct_150k.json", "coco/train2017/000000033471.jpg"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path, GOOD["one question"][0])
    (tmp_path / missing).unlink()
    with pytest.raises(DataError) as error:
        LlavaInstruct(tmp_path, "train")
    assert str(tmp_path / missing) in str(error.value)


@pytest.mark.parametrize("content", ["{", "3", '{"id": 1}', '[{"id": "1"}]', '[{"id": "1", "conversations": [3]}]'])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path, GOOD["one question"][0]).write_text(content)
    with pytest.raises(DataError, match=r"llava_instruct_150k\.json: not .*download it again"):
        LlavaInstruct(tmp_path, "train")


def test_an_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'val'; there is train"):
        LlavaInstruct(tmp_path, "val")
