"""Tokenizers: template text and data, and the rule by which released checkpoints were tokenised."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasagna.assistant.random_model import byte_tokenizer, piece_tokenizer
from lasagna.errors import CheckpointError
from lasagna.prompt.tokenizer import Data, LabelTokenizer, SentencePieceTokenizer, load_tokenizer

TOKENIZERS = {"bytes": byte_tokenizer(), "pieces": piece_tokenizer()}
PIECES = TOKENIZERS["pieces"]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> LabelTokenizer:
    return TOKENIZERS[request.param]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text(max_size=30))
def test_data_has_no_control_token(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    for data in (text, text.join(tokenizer.controls)):
        assert not set(tokenizer.encode(data)) & set(tokenizer.controls.values())
        assert not set(tokenizer.encode_template(Data(data))) & set(tokenizer.controls.values())


def test_template_text_has_them(tokenizer: LabelTokenizer) -> None:
    for token, i in tokenizer.controls.items():
        assert tokenizer.encode_template(f"a{token}b").count(i) == 1
        assert tokenizer.control(token) == i
    with pytest.raises(CheckpointError, match="no token <nothing>"):
        tokenizer.control("<nothing>")


def test_parts_are_one_text_for_pieces_and_apart_for_bytes() -> None:
    assert PIECES.encode_template("the ", Data("question"), "s.") == PIECES.encode("the questions.")
    split = TOKENIZERS["bytes"].encode_template("the ", Data("question"), "s.")
    assert split == [i for part in ("the ", "question", "s.") for i in TOKENIZERS["bytes"].encode(part)]


INS, END = PIECES.control("<ins>"), PIECES.control("</s>")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a<ins>b", [*PIECES.encode("a"), INS, *PIECES.encode("b")]),
        ("a \n <ins> \t b", [*PIECES.encode("a"), INS, *PIECES.encode("b")]),
        ("a </s> b", [*PIECES.encode("a "), END, *PIECES.encode(" b")]),
        ("  a  ", PIECES.encode("  a  ")),
        ("<ins> <ins>", [INS, INS]),
        ("a\nb", PIECES.encode("a\nb")),
        ("<ins>\u3000a", [INS, *PIECES.encode("a")]),
        ("<in s>", PIECES.encode("<in s>")),
    ],
    ids=["added", "white space", "not added", "ends", "two", "newline", "wide space", "no token"],
)
def test_white_space_around_added_tokens_is_dropped(text: str, ids: list[int]) -> None:
    assert PIECES.encode_template(text) == ids


def test_the_longest_token_counts() -> None:
    tokens = {"<i": 400, "<ins>": 401, "ins>": 402}
    tokenizer = SentencePieceTokenizer(PIECES._model, tokens)
    assert [i for i in tokenizer.encode_template("a<ins>b<i c ins>") if i >= 400] == [401, 400, 402]


def test_folders_come_back(tokenizer: LabelTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    text = "Segment this image.</s> </s>日本"
    assert type(again) is type(tokenizer)
    assert again.encode_template(text) == tokenizer.encode_template(text)
    assert (len(again), again.controls) == (len(tokenizer), tokenizer.controls)
    assert {path.name for path in tmp_path.iterdir()} == set(tokenizer.files)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.model", b"junk", "not a sentencepiece model"),
        ("added_tokens.json", b"[1]", "not a table"),
        ("added_tokens.json", b'{"<ins>": "x"}', "not a table"),
        ("added_tokens.json", b'{"<ins>": 7}', "<ins> have ids"),
    ],
)
def test_files_that_are_no_tokenizer(file: str, content: bytes, message: str, tmp_path: Path) -> None:
    PIECES.save(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tmp_path)
