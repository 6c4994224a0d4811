"""Text to token ids, where a label is data.

`tokenizer.json` (Hugging Face tokenizers) holds the vocabulary. The control tokens of the sequence format have ids of
their own, which no text can produce: text is always encoded with control tokens treated as plain characters, so a label
that reads "<SEG>" is seven letters and signs.
"""

from pathlib import Path

from tokenizers import Tokenizer

from lasagna.errors import CheckpointError

BOS, EOS, PAD, SEG, NEG = "<s>", "</s>", "<pad>", "<SEG>", "<NEG>"
CONTROL_TOKENS = (PAD, BOS, EOS, SEG, NEG)


class LabelTokenizer:
    """A `tokenizers.Tokenizer` and the ids of the control tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        self.backend = tokenizer
        ids = {token: tokenizer.token_to_id(token) for token in CONTROL_TOKENS}
        missing = [token for token, i in ids.items() if i is None]
        if missing:
            raise CheckpointError(f"tokenizer.json has no token {', '.join(missing)}; the sequence format needs it")
        self.pad, self.bos, self.eos, self.seg, self.neg = (i for i in ids.values() if i is not None)

    @classmethod
    def load(cls, path: Path) -> "LabelTokenizer":
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path}: not a tokenizer.json of Hugging Face tokenizers ({error})") from error

    def save(self, path: Path) -> None:
        self.backend.save(str(path))

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without control tokens."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self.backend.decode(ids, skip_special_tokens=False))
