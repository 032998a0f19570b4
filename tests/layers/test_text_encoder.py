"""Text encoders that a ranker trains: padding is not heard, equal texts are encoded once, frozen parts stay."""

from __future__ import annotations

import math

import pytest
import torch
from tests.contract.batches import PREPARED, invented_content

from sostenuto.layers.text_encoder import LastLayerEncoder, TokenEncoder
from sostenuto.ops.encoder_layer import encoder_layer, text_vectors
from sostenuto.schema.errors import RunError, SpecError

FIELD = PREPARED.content[1]
CONTENT = invented_content(PREPARED)[FIELD.name]


def encoders():
    torch.manual_seed(0)
    small = TokenEncoder(FIELD, dim=8, layers=2, heads=2, max_tokens=24)
    last = LastLayerEncoder(FIELD, rank=2, alpha=4.0, max_tokens=24)
    for encoder in (small, last):
        encoder.set_content(CONTENT)
    return {"tokens": small, "states": last}


@pytest.mark.parametrize("name", ["tokens", "states"])
def test_a_text_is_encoded_alone_as_among_others(name):
    encoder = encoders()[name]
    texts = torch.arange(encoder.num_texts)
    with torch.no_grad():
        together = encoder(texts)
        alone = torch.cat([encoder(texts[i : i + 1]) for i in range(len(texts))])
        turned = encoder(texts.flip(0)).flip(0)
    assert torch.isfinite(together).all()
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned, together, rtol=1e-5, atol=1e-5)
    assert encoder(texts[:0]).shape == (0, encoder.out_dim)


@pytest.mark.parametrize("name", ["tokens", "states"])
def test_every_parameter_learns_and_constants_do_not(name):
    encoder = encoders()[name]
    constants = [
        CONTENT.token_vectors.clone(),
        CONTENT.states.clone(),
        *(t.clone() for t in CONTENT.last_layer.values()),
    ]
    encoder(torch.arange(encoder.num_texts)).pow(3).sum().backward()
    for key, parameter in encoder.named_parameters():
        assert torch.isfinite(parameter.grad).all(), key
    moved = [p for p in encoder.parameters() if p.grad.any()]
    assert len(moved) >= 4
    now = [CONTENT.token_vectors, CONTENT.states, *CONTENT.last_layer.values()]
    assert all(torch.equal(a, b) for a, b in zip(constants, now, strict=True))
    assert not any(name.startswith(("tokens", "states", "token_vectors")) for name in encoder.state_dict())


def test_the_last_layer_starts_as_the_frozen_encoder():
    encoder = encoders()["states"]
    texts = torch.arange(1, encoder.num_texts)
    mask = encoder.tokens_of(texts) != 0
    hidden = CONTENT.states[texts].float()
    frozen = text_vectors(encoder_layer(hidden, mask, CONTENT.last_layer, heads=CONTENT.heads), mask)
    with torch.no_grad():
        torch.testing.assert_close(encoder(texts), frozen * math.sqrt(FIELD.token_dim), rtol=1e-4, atol=1e-4)
        for parameter in encoder.parameters():
            parameter.normal_()
        assert not torch.allclose(encoder(texts), frozen * math.sqrt(FIELD.token_dim), atol=1e-2)


def test_a_long_text_keeps_its_beginning():
    short = TokenEncoder(FIELD, dim=8, layers=1, heads=2, max_tokens=2)
    short.set_content(CONTENT)
    assert short.tokens_of(torch.arange(short.num_texts)).shape[1] == 2


def test_an_encoder_without_content_says_so():
    with pytest.raises(RunError, match="content 'text' must be handed over"):
        TokenEncoder(FIELD, dim=8, layers=1, heads=2, max_tokens=4).of_items(torch.tensor([1]))
    bare = invented_content(PREPARED, ("vectors",))[FIELD.name]
    with pytest.raises(SpecError, match="must come with tokens"):
        TokenEncoder(FIELD, dim=8, layers=1, heads=2, max_tokens=4).set_content(bare)
    with pytest.raises(SpecError, match="must come with hidden states"):
        LastLayerEncoder(FIELD, rank=1, alpha=1.0, max_tokens=4).set_content(
            invented_content(PREPARED, ("tokens",))["text"]
        )
    with pytest.raises(SpecError, match="heads must divide"):
        TokenEncoder(FIELD, dim=8, layers=1, heads=3, max_tokens=4)
