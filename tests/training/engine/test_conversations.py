"""The objective of whole conversations: padding, image sharing, void pixels, what is supervised."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lasagna import Lasagna
from training.engine.conversations import ConversationBatch, conversation_losses, encode_images
from training.recipe.values import ConversationWeights


@pytest.fixture(scope="module", params=["paper", "released"])
def model(request: pytest.FixtureRequest) -> Lasagna:
    return Lasagna.random(4, request.param)


def batch_of(model: Lasagna, *, masks: list[Tensor] | None = None, known: list[Tensor] | None = None):
    prompt, rng = model.prompt, np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    names = [prompt.encode_name(name) for name in ("sky", "road", "tree")]
    turns = [
        [prompt.class_list_turn(names, [True, False, True])],
        [prompt.text_turn("referring", "the dog")],
        [prompt.text_turn("vqa", "What is it?", "A dog."), prompt.text_turn("referring", "it", present=False)],
    ]
    targets = masks or [torch.rand(count, 48, 64) < 0.5 for count in (2, 1, 0)]
    return ConversationBatch(
        [model.model.encoder.prepare(image) for image in pixels],
        [prompt.conversation(each) for each in turns],
        [0, 1, 1],
        targets,
        known,
    )


def one(batch: ConversationBatch, i: int) -> ConversationBatch:
    return ConversationBatch([batch.images[batch.owners[i]]], [batch.conversations[i]], [0], [batch.masks[i]], None)


@torch.no_grad()
def test_a_batch_is_the_mean_over_its_tokens_and_masks(model: Lasagna) -> None:
    """Whatever is padded to whatever length."""
    torch.manual_seed(0)
    batch = batch_of(model)
    together = conversation_losses(model.model, batch)
    alone = [conversation_losses(model.model, one(batch, i)) for i in range(3)]
    tokens = torch.tensor([sum(label != -100 for label in c.labels) for c in batch.conversations])
    masks = torch.tensor([2, 1, 0])
    for key, weights in {"text": tokens, "bce": masks, "dice": masks}.items():
        wanted = (torch.stack([getattr(losses, key) for losses in alone]) * weights).sum() / weights.sum()
        torch.testing.assert_close(getattr(together, key), wanted, atol=1e-5, rtol=1e-4)
    assert alone[2].bce == alone[2].dice == 0


@torch.no_grad()
def test_cross_entropy_is_of_the_answers_tokens(model: Lasagna) -> None:
    batch = one(batch_of(model), 0)
    conversation = batch.conversations[0]
    tokens = encode_images(model.model, batch.images).tokens
    embeddings = model.model.sequence(conversation.ids, tokens[0])[None]
    hidden = model.model.run(embeddings, None, torch.arange(embeddings.shape[1])[None], None)[0]
    labels = list(conversation.labels)
    place = conversation.ids.index(-200)
    spread = [*labels[:place], *[-100] * tokens.shape[1], *labels[place + 1 :]]
    wanted = F.cross_entropy(model.model.lm_head(hidden)[:-1], torch.tensor(spread[1:]))
    torch.testing.assert_close(conversation_losses(model.model, batch).text, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_void_pixels_do_not_count(model: Lasagna) -> None:
    torch.manual_seed(0)
    masks = [torch.rand(count, 48, 64) < 0.5 for count in (2, 1, 0)]
    known = [torch.rand(48, 64) < 0.7 for _ in range(2)]
    other = [mask ^ (~known[owner])[None] for mask, owner in zip(masks, (0, 1, 1), strict=True)]
    a = conversation_losses(model.model, batch_of(model, masks=masks, known=known))
    b = conversation_losses(model.model, batch_of(model, masks=other, known=known))
    c = conversation_losses(model.model, batch_of(model, masks=other))
    assert (a.bce, a.dice) == (b.bce, b.dice)
    assert a.bce != c.bce


@torch.no_grad()
def test_encoded_images_may_be_kept(model: Lasagna) -> None:
    torch.manual_seed(0)
    batch = batch_of(model)
    kept = encode_images(model.model, batch.images)
    again = conversation_losses(model.model, batch, kept)
    assert again.total(ConversationWeights()) == conversation_losses(model.model, batch).total(ConversationWeights())


def test_gradients_reach_what_trains(model: Lasagna) -> None:
    network = model.model
    network.encoder.requires_grad_(False)
    network.zero_grad()
    encoded = encode_images(network, batch_of(model).images)
    assert not encoded.embedding.requires_grad
    conversation_losses(network, batch_of(model), encoded).total(ConversationWeights()).backward()
    for part in (network.language_model, network.lm_head, network.prompt_projection, network.segmenter.mask_decoder):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert all(p.grad is None for p in network.encoder.parameters())
    network.zero_grad()
    network.requires_grad_(True)


def test_masks_that_do_not_match_the_answer_are_refused(model: Lasagna) -> None:
    with pytest.raises(ValueError, match="conversation 0 has 2 present decisions, 1 masks"):
        conversation_losses(model.model, batch_of(model, masks=[torch.ones(n, 48, 64).bool() for n in (1, 1, 0)]))
