"""Models of real shapes with random weights: what a figure needs that does not depend on what a model has learnt.

The weights are drawn where they stay, in the number format in which they stay: no float32 copy of a 7B model exists at
any time. They are scaled so that activations keep their size, and decisions depend on the decisions before them.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentencepiece

from lasagna.checkpoint.folder import Calibration
from lasagna.errors import ConfigError
from lasagna.network.config import DecoderConfig, ModelConfig, VisionConfig
from lasagna.prompt.dialect import RELEASED, RELEASED_TOKENS, PromptFormat

if TYPE_CHECKING:
    import torch

    from lasagna.assistant.lasagna import Lasagna
    from lasagna.network.model import LasagnaModel
    from lasagna.prompt.tokenizer import SentencePieceTokenizer

DIALECTS = ("paper", "released")
_PIECES = 32000
"""Pieces of Llama's vocabulary, after which the added tokens come."""
_LONGEST = 8192
"""Positions: the checkpoint's own 2048 do not hold 500 classes, which are asked here to see how times grow."""

_CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
_SAM_H = {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": [7, 15, 23, 31]}


def _llama(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "vocab_size": _PIECES + len(RELEASED_TOKENS),
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": _LONGEST,
    }


def _shapes() -> dict[str, ModelConfig]:
    paper = VisionConfig("clip-sam", 1024, clip=_CLIP_L, sam=_SAM_H)
    tiny = VisionConfig(
        "clip-sam",
        256,
        clip={**_CLIP_L, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
        sam={"embed_dim": 64, "depth": 2, "num_heads": 4, "global_attn_indexes": [1]},
    )
    return {
        "lasagna-7b": ModelConfig(_llama(4096, 11008, 32, 32), paper, DecoderConfig()),
        "lasagna-13b": ModelConfig(_llama(5120, 13824, 40, 40), paper, DecoderConfig()),
        # The same parts, each as small as it still is one; 256 image tokens, as in the 7B.
        "lasagna-7b-tiny": ModelConfig(_llama(128, 344, 4, 4), tiny, DecoderConfig(width=64, heads=4, mlp_dim=128)),
    }


SHAPES = tuple(_shapes())
"""Names that `random_config` knows."""


def random_config(name: str) -> ModelConfig:
    """The shape of that name, or that of a checkpoint's `config.json`.

    Raises:
        ConfigError: It is neither.
        CheckpointError: The file does not describe a model.
    """
    shapes = _shapes()
    if name in shapes:
        return shapes[name]
    if Path(name).is_file():
        return ModelConfig.load(Path(name))
    raise ConfigError(f"unknown shape {name!r}; it is one of {', '.join(shapes)}, or a model's config.json")


def random_network(config: ModelConfig, device: "torch.device", dtype: "torch.dtype", seed: int = 0) -> "LasagnaModel":
    """The network with random weights, in eval mode; `seed` gives the same weights on the same kind of device."""
    import torch

    from lasagna.network.model import LasagnaModel

    model = LasagnaModel.without_weights(config, device, dtype)
    generator = torch.Generator(device).manual_seed(seed)
    looked_up = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, torch.nn.Embedding)}
    with torch.no_grad():
        # What a checkpoint holds: parameters, and the buffers that are not computed.
        for name, values in model.state_dict().items():
            if not values.is_floating_point() or name.endswith(("running_mean", "bias")):
                values.zero_()
            elif values.ndim < 2:  # scales of norms, variances
                values.fill_(1)
            else:
                std = 1.0 if name in looked_up else values[0].numel() ** -0.5
                values.normal_(std=std, generator=generator)
    return model.eval()


def word_tokenizer(names: Sequence[str]) -> "SentencePieceTokenizer":
    """A sentencepiece model of Llama's kind that knows these names by about two pieces each, as Llama's own does (which
    cannot be shipped). Its added tokens have the ids of the released checkpoint."""
    from lasagna.prompt.tokenizer import CONTROL_TOKENS, SentencePieceTokenizer

    file = io.BytesIO()
    wordings = [RELEASED.system, *(text for texts in RELEASED.questions.values() for text in texts)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*wordings * 2, *[", ".join(names)] * 4, " ".join("0123456789")]),
        model_writer=file,
        model_type="bpe",
        vocab_size=900,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        max_sentence_length=100_000,
        minloglevel=2,
    )
    added = [token for token in (*RELEASED_TOKENS, *CONTROL_TOKENS) if token not in ("<s>", "</s>", "<unk>")]
    first = _PIECES
    return SentencePieceTokenizer(file.getvalue(), {token: first + i for i, token in enumerate(dict.fromkeys(added))})


def random_lasagna(
    name: str, dialect: str, names: Sequence[str], device: str = "cpu", dtype: str = "auto", seed: int = 0
) -> "Lasagna":
    """A model of a shape of `random_config`, ready to be asked.

    Args:
        dialect: "paper" or "released"; see `lasagna.prompt.dialect`.
        names: Class names that its tokenizer knows well.
        device, dtype: As for `Lasagna.from_pretrained`.
    """
    from lasagna.assistant.devices import choose_device, choose_dtype
    from lasagna.assistant.lasagna import Lasagna

    if dialect not in DIALECTS:
        raise ConfigError(f"unknown dialect {dialect!r}; it is {' or '.join(DIALECTS)}")
    place = choose_device(device)
    config = random_config(name)
    tokenizer = word_tokenizer(names)
    config.text["vocab_size"] = max(int(config.text["vocab_size"]), len(tokenizer))
    network = random_network(config, place, choose_dtype(dtype, place), seed)
    format = replace(PromptFormat() if dialect == "paper" else RELEASED, max_length=_LONGEST)
    return Lasagna(network, tokenizer, format, Calibration(), f"{Path(name).stem}-random-{seed}-{dialect}")
