"""Llama written out here is transformers' Llama: same weights' names, same hidden states, however a sequence is cut."""

import copy
from typing import Any

import pytest
import torch

from lasagna.errors import CheckpointError
from lasagna.network.compat import ensure_torchvision
from lasagna.network.llama import KeyValues, Llama, LlamaShape

PLAIN = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "initializer_range": 0.2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "fewer heads of keys": {**PLAIN, "num_key_value_heads": 2},
    "wide heads, biases": {**PLAIN, "head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "other positions": {**PLAIN, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "scaled positions": {**PLAIN, "rope_scaling": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
}


@pytest.fixture(params=SHAPES, name="values")
def _values(request: pytest.FixtureRequest) -> dict[str, Any]:
    return copy.deepcopy(SHAPES[request.param])


@torch.inference_mode()
def test_is_transformers_llama(values: dict[str, Any]) -> None:
    ensure_torchvision()
    import transformers

    torch.manual_seed(0)
    ours = Llama(LlamaShape.from_config(values)).eval()
    theirs = transformers.LlamaModel(transformers.LlamaConfig(**values)).eval()
    theirs.load_state_dict(ours.state_dict())  # strict: the names are the same
    embeddings = torch.randn(2, 12, 32)
    valid = torch.ones(2, 12, dtype=torch.long)
    valid[1, 3:5] = 0  # padding after a shared prefix
    positions = (valid.cumsum(1) - 1).clamp(min=0)
    for mask in (None, valid):
        expected = theirs(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions).last_hidden_state
        found = ours(embeddings, positions, mask)
        keep = valid.bool() if mask is not None else torch.ones(2, 12, dtype=torch.bool)
        torch.testing.assert_close(found[keep], expected[keep], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_the_cache_changes_nothing(values: dict[str, Any]) -> None:
    torch.manual_seed(1)
    network = Llama(LlamaShape.from_config(values)).eval()
    embeddings = torch.randn(3, 20, 32)
    positions = torch.arange(20).expand(3, -1)
    whole = network(embeddings, positions)
    cache, found = KeyValues(7), []
    for first, last in ((0, 6), (6, 7), (7, 20)):  # within the capacity, one position, beyond it
        found.append(network(embeddings[:, first:last], positions[:, first:last], cache=cache))
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-5, atol=1e-5)

    # Cut back to 8 positions and keep the last row twice: what follows is that row's.
    cache.crop(8)
    cache.select(torch.tensor([2, 2]))
    rest = network(embeddings[[2, 2], 8:], positions[:2, 8:], cache=cache)
    torch.testing.assert_close(rest, whole[[2, 2], 8:], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_reading_some_positions_gives_their_states(values: dict[str, Any]) -> None:
    """And keeps the keys and values of all."""
    torch.manual_seed(3)
    network = Llama(LlamaShape.from_config(values)).eval()
    embeddings = torch.randn(2, 12, 32)
    valid = torch.ones(2, 12, dtype=torch.long)
    valid[1, 1:3] = 0
    positions = (valid.cumsum(1) - 1).clamp(min=0)
    for mask in (None, valid):
        whole = network(embeddings, positions, mask)
        cache = KeyValues()
        nothing = torch.zeros((2, 0), dtype=torch.long)
        seen = None if mask is None else mask[:, :5]
        assert network(embeddings[:, :5], positions[:, :5], seen, cache, nothing).shape == (2, 0, 32)
        read = torch.tensor([[0, 3], [6, 6]])
        found = network(embeddings[:, 5:], positions[:, 5:], mask, cache, read)
        expected = torch.stack([whole[row, 5 + read[row]] for row in range(2)])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert cache.length == 12


def test_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(2)
    network = Llama(LlamaShape.from_config(PLAIN)).train()
    embeddings, positions = torch.randn(1, 9, 32), torch.arange(9)[None]
    gradients = []
    for network.checkpointing in (False, True):
        network.zero_grad()
        network(embeddings, positions).square().sum().backward()
        weight = network.layers[0].self_attn.q_proj.weight
        assert weight.grad is not None
        gradients.append(weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "with yarn rotary positions"),
        ({"hidden_act": "gelu"}, "and gelu cannot be built"),
        ({"num_key_value_heads": 3}, "32 wide, 4 heads, 3 of keys"),
        ({"num_attention_heads": 0}, "not the shape of a language model"),
        ({"hidden_size": "wide"}, "not the shape of a language model"),
    ],
    ids=["positions", "activation", "heads of keys", "no heads", "a word"],
)
def test_refuses_what_it_is_not(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        LlamaShape.from_config({**PLAIN, **change})
