"""Text to token ids, where a label is data.

Two tokenizers, one per kind of checkpoint, with the same interface: a byte-level BPE made for label names
(`tokenizer.json`, Hugging Face tokenizers) and Llama's sentencepiece model with added tokens (`tokenizer.model`,
`added_tokens.json`), as released checkpoints have it.

What always holds: control tokens have ids of their own, which only template text can produce. Data (`Data`, and what
goes through `encode`) is plain characters, so a label that reads "<ins>" is five letters and signs.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lasagna.errors import CheckpointError

BOS, EOS, PAD, UNK, SEG, NEG = "<s>", "</s>", "<pad>", "<unk>", "<SEG>", "<NEG>"
CONTROL_TOKENS = (PAD, BOS, EOS, SEG, NEG)
"""The control tokens of our own tokenizer.json, in the order of their ids."""


class Data(str):
    """Text that comes from outside (a label, a question, a caption): it never holds a control token."""

    __slots__ = ()


class LabelTokenizer(ABC):
    """Ids of text and of control tokens.

    Attributes:
        files: What a checkpoint folder holds for it.
        controls: Id of every control token.
        bos, eos, pad: Begin, end, padding.
    """

    files: ClassVar[tuple[str, ...]]

    def __init__(self, controls: dict[str, int], bos: int, eos: int, pad: int) -> None:
        self.controls, self.bos, self.eos, self.pad = controls, bos, eos, pad
        longest_first = sorted(controls, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(re.escape(token) for token in longest_first) + ")")

    @abstractmethod
    def __len__(self) -> int:
        """One more than the largest id."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without control tokens."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens spelled out; negative ids (the image) are passed over."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the tokenizer's `files` into a folder."""

    @abstractmethod
    def _encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        """Ids of template text (str), data (`Data`) and control tokens (their ids)."""

    def control(self, token: str) -> int:
        """The id of a control token. Raises CheckpointError where the vocabulary has none."""
        if token not in self.controls:
            raise CheckpointError(f"{' and '.join(self.files)}: no token {token}; the sequence format needs it")
        return self.controls[token]

    def encode_template(self, *parts: str) -> list[int]:
        """Ids of one text made of parts. Control tokens count in template text (str), not in `Data`."""
        pieces: list[str | int] = []
        for part in parts:
            if isinstance(part, Data):
                pieces.append(part)
                continue
            for text in filter(None, self._split.split(part)):
                if text in self.controls:
                    pieces.append(self.controls[text])
                elif pieces and isinstance(pieces[-1], str) and not isinstance(pieces[-1], Data):
                    pieces[-1] += text
                else:
                    pieces.append(text)
        return self._encode_pieces(pieces)


class BytePairTokenizer(LabelTokenizer):
    """Our own: every part of a text is encoded for itself, so a label's ids do not depend on its neighbours."""

    files = ("tokenizer.json",)

    def __init__(self, tokenizer: Any) -> None:
        """Takes a `tokenizers.Tokenizer` that has `CONTROL_TOKENS`."""
        tokenizer.encode_special_tokens = True
        self.backend = tokenizer
        ids = {token: tokenizer.token_to_id(token) for token in CONTROL_TOKENS}
        missing = [token for token, i in ids.items() if i is None]
        if missing:
            raise CheckpointError(f"tokenizer.json has no token {', '.join(missing)}; the sequence format needs it")
        super().__init__(ids, ids[BOS], ids[EOS], ids[PAD])

    @classmethod
    def load(cls, folder: Path) -> "BytePairTokenizer":
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path}: not a tokenizer.json of Hugging Face tokenizers ({error})") from error

    def save(self, folder: Path) -> None:
        self.backend.save(str(folder / "tokenizer.json"))

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.backend.decode([i for i in ids if i >= 0], skip_special_tokens=False))

    def _encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        return [i for piece in pieces for i in ([piece] if isinstance(piece, int) else self.encode(piece))]


class SentencePieceTokenizer(LabelTokenizer):
    """Llama's, by the rule of the slow tokenizer that released checkpoints were trained with (transformers 4.31).

    A text is split at control tokens; white space, newlines too, is dropped on both sides of an *added* token (not of
    <s>, </s>, <unk>); what lies between is encoded as one text of its own, with its own leading mark.
    """

    files = ("tokenizer.model", "added_tokens.json")

    def __init__(self, model: bytes, added: dict[str, int]) -> None:
        """
        Args:
            model: Content of `tokenizer.model`.
            added: Ids of the added tokens.
        """
        from sentencepiece import SentencePieceProcessor

        self._model, self._added = model, added
        try:
            self._pieces = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise CheckpointError(f"tokenizer.model: not a sentencepiece model ({error})") from error
        own = {BOS: self._pieces.bos_id(), EOS: self._pieces.eos_id(), UNK: self._pieces.unk_id()}
        if min(own.values()) < 0:
            raise CheckpointError(f"tokenizer.model: it has no {', '.join(t for t, i in own.items() if i < 0)}")
        inside = [token for token, i in added.items() if i < len(self._pieces) and token not in own]
        if inside:
            raise CheckpointError(
                f"added_tokens.json: {', '.join(inside)} have ids that tokenizer.model, with its {len(self._pieces)} "
                "pieces, uses itself"
            )
        super().__init__({**added, **own}, own[BOS], own[EOS], own[UNK])
        self._names = {i: token for token, i in self.controls.items()}
        self._stripping = {i for token, i in added.items() if token not in own}

    @classmethod
    def load(cls, folder: Path) -> "SentencePieceTokenizer":
        return cls((folder / "tokenizer.model").read_bytes(), read_added_tokens(folder))

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.model").write_bytes(self._model)
        (folder / "added_tokens.json").write_text(json.dumps(self._added, indent=2) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return max(len(self._pieces), 1 + max(self.controls.values()))

    def encode(self, text: str) -> list[int]:
        return list(self._pieces.encode(str(text)))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids as transformers 4.31 prints it: a space on both sides of a run of added tokens, one before a
        control token that follows text."""
        texts: list[str] = []
        run: list[int] = []
        for i in ids:
            if i in self._stripping:
                texts += [self._decode_run(run)] * bool(run) + [self._names[i]]
                run = []
            elif 0 <= i < len(self._pieces):
                run.append(i)
        return " ".join([*texts, *[self._decode_run(run)] * bool(run)])

    def _decode_run(self, ids: Sequence[int]) -> str:
        text, after_control = "", False
        pending: list[int] = []
        for position, i in enumerate(ids):
            if i in self._names:
                text += " " * (position > 0 and not after_control) + self._pieces.decode(pending) + self._names[i]
                pending, after_control = [], True
            else:
                pending.append(i)
                after_control = False
        return text + str(self._pieces.decode(pending))

    def _encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        joined: list[str | int] = []
        for piece in pieces:
            last = joined[-1] if joined else None
            if isinstance(piece, str) and isinstance(last, str):
                joined[-1] = last + piece
            else:
                joined.append(piece)
        ids: list[int] = []
        for position, piece in enumerate(joined):
            if isinstance(piece, int):
                ids.append(piece)
                continue
            if position and joined[position - 1] in self._stripping:
                piece = piece.lstrip()
            if position + 1 < len(joined) and joined[position + 1] in self._stripping:
                piece = piece.rstrip()
            if piece:
                ids += self.encode(piece)
        return ids


def read_added_tokens(folder: Path) -> dict[str, int]:
    """`added_tokens.json` of a folder: token to id; empty where there is none. Raises CheckpointError."""
    path = folder / "added_tokens.json"
    if not path.exists():
        return {}
    try:
        return {str(token): int(i) for token, i in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a table of tokens and ids ({error})") from error


def load_tokenizer(folder: Path) -> LabelTokenizer:
    """The tokenizer of a checkpoint folder: `tokenizer.model` where there is one, else `tokenizer.json`."""
    kind = SentencePieceTokenizer if (folder / "tokenizer.model").exists() else BytePairTokenizer
    return kind.load(folder)
