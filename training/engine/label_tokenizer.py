"""A byte-level BPE tokenizer made for label names.

Vocabulary is spent on the names that annotators use: names are the bulk of the text, captions and templates the rest,
so that a common name is one or two tokens and any other text, in any script, still has ids (bytes).
"""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lasagna.prompt.tokenizer import CONTROL_TOKENS, BytePairTokenizer


def build_tokenizer(
    names: Sequence[str], texts: Iterable[str], vocabulary: int, name_weight: int = 50
) -> BytePairTokenizer:
    """Trains the tokenizer.

    Args:
        names: Label names; each counts `name_weight` times.
        texts: Other text (captions, question templates).
        vocabulary: Size, the 256 bytes and the control tokens included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*(name for name in names for _ in range(name_weight)), *texts], trainer)
    return BytePairTokenizer(tokenizer)
