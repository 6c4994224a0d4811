"""The parts of tiny models with random weights, for tests and benchmarks: the same code at the smallest size."""

import io

import torch
from torch import nn

from lasagna.errors import ConfigError
from lasagna.network.config import DecoderConfig, ModelConfig, VisionConfig
from lasagna.network.model import LasagnaModel
from lasagna.prompt.dialect import RELEASED, RELEASED_TOKENS, PromptFormat
from lasagna.prompt.tokenizer import CONTROL_TOKENS, BytePairTokenizer, LabelTokenizer, SentencePieceTokenizer


def byte_tokenizer() -> BytePairTokenizer:
    """One token per byte, and the control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*CONTROL_TOKENS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(CONTROL_TOKENS))
    return BytePairTokenizer(backend)


def piece_tokenizer() -> SentencePieceTokenizer:
    """A small sentencepiece model of Llama's kind (BPE, bytes for what it does not know), and the added tokens."""
    import sentencepiece

    model = io.BytesIO()
    texts = [RELEASED.system, *(text for wordings in RELEASED.questions.values() for text in wordings)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts * 3, " ".join("abcdefghijklmnopqrstuvwxyz,0123456789")]),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue(), {token: 400 + i for i, token in enumerate(RELEASED_TOKENS)})


def random_parts(seed: int, dialect: str) -> tuple[LasagnaModel, LabelTokenizer, PromptFormat]:
    """Network, tokenizer and format in the dialect "paper" or "released"."""
    if dialect not in ("paper", "released"):
        raise ConfigError(f"unknown dialect {dialect!r}; it is paper or released")
    paper = dialect == "paper"
    tokenizer = byte_tokenizer() if paper else piece_tokenizer()
    config = ModelConfig(
        text={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 8192,
            "initializer_range": 0.2,
        },
        vision=VisionConfig(kind="pyramid", image_size=64, token_grid=2, backbone="test_efficientnet"),
        decoder=DecoderConfig(width=16, heads=2, mlp_dim=32, coarse_mask=True, skip_channels=(4, 2)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LasagnaModel(config)
        for parameter in network.segmenter.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    # A byte a token: 500 labels take more than the paper's dialect is made for.
    format = PromptFormat(max_length=4096) if paper else RELEASED
    return network, tokenizer, format
