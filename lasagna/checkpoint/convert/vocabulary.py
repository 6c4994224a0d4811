"""The tokenizer of a foreign checkpoint, and the rows of its embeddings that the dialect's tokens need."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lasagna.errors import CheckpointError
from lasagna.prompt.dialect import RELEASED_TOKENS
from lasagna.prompt.tokenizer import SentencePieceTokenizer, read_added_tokens


@dataclass(frozen=True)
class Vocabulary:
    """Attributes:
    tokenizer: With every token of the dialect.
    rows: Of the embeddings that it needs.
    added: Tokens that are new, by id.
    plain: Rows of ordinary pieces: new rows are their mean.
    """

    tokenizer: SentencePieceTokenizer
    rows: int
    added: dict[str, int]
    plain: int

    def extend(self, weight: Tensor) -> Tensor:
        """Embeddings (old rows, width) to float32 (rows, width)."""
        mean = weight[: self.plain].float().mean(0)
        result = weight.new_zeros((self.rows, weight.shape[1])).float()
        result[: len(weight)] = weight.float()
        result[len(weight) :] = mean
        for i in self.added.values():
            result[i] = mean
        return result


def read_vocabulary(folder: Path, len_rows: int, fresh: bool) -> Vocabulary:
    """The tokenizer of a folder.

    Args:
        len_rows: Rows of its embeddings.
        fresh: Whether tokens of the dialect that are missing are added; else they are an error.

    Raises CheckpointError for a tokenizer that does not belong to the checkpoint or to the dialect.
    """
    if not (folder / "tokenizer.model").exists():
        raise CheckpointError(
            f"{folder}: no tokenizer.model in it; fetch it: the fast tokenizer.json gives other ids than the model "
            "was trained with"
        )
    added = read_added_tokens(folder)
    missing = [token for token in RELEASED_TOKENS if token not in added]
    if missing and not fresh:
        raise CheckpointError(f"{folder}: {_missing(added, missing)}")
    base = SentencePieceTokenizer((folder / "tokenizer.model").read_bytes(), added)
    new: dict[str, int] = {}
    for token in missing:
        new[token] = len(base) + len(new)
    tokenizer = SentencePieceTokenizer((folder / "tokenizer.model").read_bytes(), {**added, **new})
    if len(base) > len_rows:
        raise CheckpointError(
            f"{folder}: the tokenizer has ids up to {len(base) - 1}, the embeddings {len_rows} rows; "
            "the tokenizer belongs to another checkpoint"
        )
    plain = min(len_rows, len(SentencePieceTokenizer((folder / "tokenizer.model").read_bytes(), {})))
    return Vocabulary(tokenizer, max(len_rows, len(tokenizer)), new, plain)


def _missing(added: dict[str, int], missing: list[str]) -> str:
    if "[SEG]" in added:
        return (
            "this is a LISA checkpoint: its tokenizer has [SEG], one token for one mask, and not "
            f"{', '.join(missing)}; it can answer no class list and is not read"
        )
    if not added:
        return (
            f"its tokenizer has no added tokens (added_tokens.json is missing or empty); {', '.join(missing)} are "
            "needed: take the tokenizer's files from the same checkpoint as the weights"
        )
    return (
        f"its tokenizer lacks {', '.join(missing)} (added_tokens.json has {', '.join(sorted(added))}); it is not that "
        "of a LaSagnA checkpoint"
    )
