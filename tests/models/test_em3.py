"""EM3: what section 9 of its specification says of the whole ranker; layers have their own tests.

Property 1, 2, 3, 9: tests/layers/test_fusion_q_former.py. 5, 6, 10: tests/layers/test_lora.py. 7: tests/ops/
test_contrastive.py. 3, 4, 6, 7, 8, 9 on the ranker, and what bounds a step: here.
"""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from tests.contract.batches import (
    PREPARED,
    batches,
    invented_content,
    make_batch,
    shuffle_moments,
    split_history,
    view_of,
)
from torch.nn.functional import binary_cross_entropy_with_logits

from sostenuto.data.worlds import world_prepared
from sostenuto.evaluation.auc import auc
from sostenuto.evaluation.predictions import load_predictions
from sostenuto.evaluation.slices import by_new_item
from sostenuto.models.em3 import EM3, EM3Config
from sostenuto.models.table import default_config
from sostenuto.schema.errors import RunError, SpecError
from sostenuto.schema.histories import Catalogue
from sostenuto.schema.ranker import ItemKeeper
from sostenuto.training.config import Budget, RunConfig, TrainingConfig
from sostenuto.training.run import run_training

SPEC = view_of(PREPARED, match=True)
SMALL = {
    "item_dim": 6,
    "category_dim": 3,
    "field_dim": 3,
    "attention_units": (8,),
    "tower_units": (8,),
    "table_std": 0.5,
    "text_dim": 8,
    "text_heads": 2,
    "content_dim": 8,
    "content_units": (4,),
    "lora_rank": 2,
}


def fresh(seed=0, spec=SPEC, content=None, **changes):
    torch.manual_seed(seed)
    ranker = EM3(EM3Config(**{**SMALL, **changes}), spec)
    ranker.take_content(invented_content(spec) if content is None else content)
    return ranker


def em3(seed=0, spec=SPEC, content=None, **changes):
    """Return a ranker whose every part speaks, in evaluation mode."""
    ranker = fresh(seed, spec, content, **changes)
    with torch.no_grad():
        if ranker.wide is not None:
            ranker.wide.weight.normal_()
        for name, parameter in ranker.named_parameters():
            if name.startswith(("content", "to_target", "of_behaviours")):
                parameter.normal_(0, 0.4)
    ranker._fill_cache()
    return ranker.eval()


def logits(ranker, batch, histories=None):
    with torch.no_grad():
        return ranker(batch.histories if histories is None else histories, batch.candidates, batch.context).logits


VARIANTS = {
    "last layer": {"end_to_end": "states"},
    "stored vectors": {"end_to_end": "off"},
    "trained text alone": {"frozen_beside": False, "text_layers": 2},
    "no contrast": {"contrastive_weight": 0.0},
    "whole history map": {"history_map": "full"},
    "frozen history map": {"history_map": "frozen"},
    "published contrast": {"contrastive_exclude_self": False, "contrastive_temperature": 0.5},
    "deeper fusion": {"queries": 5, "fusion_blocks": 2, "fusion_dropout": 0.5, "content_units": (8, 4)},
    "bounded": {"fresh_targets": 2, "fresh_history": 0, "refreshed": 3},
    "plain": {"gaps": False, "wide": False, "item_dim": 0, "vector_dim": 0, "normalise": "none"},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@settings(max_examples=5)
@given(batch=batches(SPEC), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_variant_keeps_the_laws(changes, batch, share, seed):
    ranker = em3(**changes)
    whole = logits(ranker, batch)
    assert torch.isfinite(whole).all()
    torch.testing.assert_close(
        logits(ranker, batch, shuffle_moments(batch.histories, seed)), whole, rtol=1e-5, atol=1e-5
    )
    early, later = split_history(batch.histories, share)
    with torch.no_grad():
        state = ranker.append(ranker.encode(early), later)
        folded = ranker.score(state, batch.candidates, batch.context).logits
    torch.testing.assert_close(folded, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_trains(changes):
    ranker, batch = em3(**changes).train(), make_batch(SPEC, [(5, 6), (0, 2)], 0)
    output = ranker(batch.histories, batch.candidates, batch.context)
    assert set(output.aux_losses) == ({"contrastive"} if ranker.config.contrastive_weight else set())
    (output.logits.square().sum() + sum(output.aux_losses.values())).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad.to_dense()).all() for p in ranker.parameters())


@pytest.mark.parametrize("count", [1, 2])
def test_modalities_are_added_without_a_change_behind_the_fusion(count):
    """em3.md section 9, property 1, on the ranker."""
    spec = dataclasses.replace(SPEC, content=SPEC.content[:count])
    ranker = em3(spec=spec, end_to_end="off")
    assert len(ranker.content.modalities) == count
    assert ranker.to_target.weight.shape == (8, 16)
    assert torch.isfinite(logits(ranker, make_batch(spec, [(5, 3)], 0))).all()


def test_a_missing_modality_of_an_item_cannot_be_heard():
    """em3.md section 9, property 3, on the ranker."""
    content = invented_content(SPEC)
    image = content["image"]
    noisy = image.vectors.clone()
    noisy[~image.known] = 77.0
    assert 0 < int((~image.known).sum()) < len(image.known)
    other = content | {"image": dataclasses.replace(image, vectors=noisy)}
    batch = make_batch(SPEC, [(9, 6), (4, 4)], 0)
    torch.testing.assert_close(
        logits(em3(content=other), batch), logits(em3(content=content), batch), rtol=0, atol=1e-6
    )
    heard = image.vectors.clone()
    heard[image.known] *= -1
    changed = content | {"image": dataclasses.replace(image, vectors=heard)}
    assert not torch.allclose(logits(em3(content=changed), batch), logits(em3(content=content), batch), atol=1e-4)


@pytest.mark.parametrize("end_to_end", ["tokens", "states"])
def test_the_ranking_loss_alone_reaches_every_part_of_the_content_and_no_constant(end_to_end):
    """em3.md section 9, property 4."""
    content = invented_content(SPEC)
    constants = {
        (name, key): getattr(part, key).clone()
        for name, part in content.items()
        for key in ("vectors", "tokens", "token_vectors", "states")
        if getattr(part, key) is not None
    }
    ranker = em3(content=content, end_to_end=end_to_end, contrastive_weight=0.0).train()
    batch = make_batch(SPEC, [(9, 6), (4, 4)], 0)
    parts = [ranker.content, ranker.to_target, ranker.of_behaviours]
    before = {name: p.detach().clone() for name, p in ranker.named_parameters()}
    optimiser = torch.optim.Adam((p for part in parts for p in part.parameters()), lr=0.01)
    for step in range(3):
        optimiser.zero_grad()
        output = ranker(batch.histories, batch.candidates, batch.context)
        binary_cross_entropy_with_logits(output.logits, batch.labels).backward()
        if not step:
            silent = [
                name
                for name, p in ranker.named_parameters()
                if name.startswith(("content.", "to_target", "of_behaviours")) and not p.grad.any()
            ]
            # a bias of keys moves all scores of a query alike, so softmax does not hear it
            assert [name for name in silent if not name.endswith("key.bias")] == []
        optimiser.step()
    after = dict(ranker.named_parameters())
    for name in ("content.fuse.queries", "to_target.weight", "of_behaviours.a", "of_behaviours.b"):
        assert not torch.equal(before[name], after[name]), name
    for (name, key), kept in constants.items():
        assert torch.equal(getattr(content[name], key), kept)
        assert not getattr(content[name], key).requires_grad


def test_content_vectors_from_the_cache_are_those_made_anew_between_steps():
    """em3.md section 9, property 6, on the ranker: values, and gradients of the low-rank map."""
    targets, behaviours = torch.tensor([3, 9, 3, 20]), torch.tensor([5, 9, 5, 31, 7, 2, 2])
    found = {}
    for name, budget in {"few": 1, "all": 99}.items():
        ranker = em3(contrastive_weight=0.0, fresh_targets=budget, fresh_history=budget).train()
        of_targets, of_behaviours, is_fresh = ranker._bounded(targets, behaviours)
        assert bool(is_fresh.all()) is (name == "all")
        of_behaviours.pow(2).sum().backward()
        found[name] = of_targets, of_behaviours, ranker.of_behaviours.a.grad, ranker.of_behaviours.b.grad
    with torch.no_grad():
        anew = ranker.content_vectors(targets)[0], ranker.content_vectors(behaviours)[1]
    for few, every in zip(found["few"], found["all"], strict=True):
        torch.testing.assert_close(few, every, rtol=1e-4, atol=1e-5)
    for few, exact in zip(found["few"], anew, strict=False):
        torch.testing.assert_close(few, exact, rtol=1e-5, atol=1e-5)


def test_the_contrast_moves_content_and_ids():
    """em3.md section 9, property 7, on the ranker."""
    ranker, batch = em3().train(), make_batch(SPEC, [(5, 9), (3, 9)], 0)
    ranker(batch.histories, batch.candidates, batch.context).aux_losses["contrastive"].backward()
    assert ranker.histories.items.item.weight.grad.to_dense().any()
    assert ranker.content.fuse.queries.grad.any()
    weights = {name: p.grad for name, p in ranker.tower.named_parameters()}
    assert all(gradient is None for gradient in weights.values())


def counted(ranker):
    """Return a list that grows by the number of items whenever content is made."""
    made = []
    ranker.content.register_forward_hook(lambda _, given, __: made.append(len(given[0])))
    return made


@pytest.mark.parametrize("length", [5, 400])
def test_a_step_makes_the_content_of_a_bounded_number_of_items(length):
    ranker = em3(fresh_targets=4, fresh_history=3, refreshed=6).train()
    made, batch = counted(ranker), make_batch(SPEC, [(length, 9), (length, 9)], 0)
    ranker(batch.histories, batch.candidates, batch.context).logits.sum().backward()
    assert 6 <= sum(made) <= 4 + 3 + 6


def test_cached_contents_follow_the_encoder_within_a_round():
    ranker = em3(fresh_targets=1, fresh_history=0, refreshed=8, lora_rank=1).train()
    batch = make_batch(SPEC, [(5, 4)], 0)
    with torch.no_grad():
        for parameter in ranker.content.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        ranker.to_target.weight.mul_(1.5)
        wanted = ranker.content(torch.arange(40))
        assert not torch.allclose(ranker.cache.rows, wanted, atol=1e-2)
        for _ in range(5):  # 40 items, 8 a step
            ranker(batch.histories, batch.candidates, batch.context)
    torch.testing.assert_close(ranker.cache.rows, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(ranker.of_behaviours.weight, ranker.to_target.weight)  # the frozen map follows at a round's end
    torch.testing.assert_close(ranker.base, ranker.of_behaviours.base(ranker.cache.rows), rtol=1e-5, atol=1e-5)


def test_the_item_table_is_made_once_per_model_version_and_equals_the_way_without_it():
    ranker, batch = em3(), make_batch(SPEC, [(9, 6), (4, 4)], 0)
    made = counted(ranker)
    by_table = logits(ranker, batch)
    assert torch.equal(logits(ranker, batch), by_table)
    assert made == [40]
    without = ranker(batch.histories, batch.candidates, batch.context).logits  # gradients wanted: made anew
    torch.testing.assert_close(without.detach(), by_table, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        ranker.content.fuse.queries.add_(0.5)
    other = logits(ranker, batch)
    assert made[0] == made[-1] == 40
    assert len(made) == 3
    assert not torch.allclose(other, by_table, atol=1e-4)


def test_kept_items_score_the_same():
    ranker, batch = em3(), make_batch(SPEC, [(9, 6), (4, 4)], 0)
    wanted, item = logits(ranker, batch), batch.candidates.item
    about = Catalogue(
        category=torch.zeros(40, batch.candidates.category.shape[1], dtype=torch.int64).index_put(
            (item,), batch.candidates.category
        ),
        fields={
            f.name: torch.zeros(40, *column.shape[1:], dtype=column.dtype).index_put((item,), column)
            for f in SPEC.item_fields
            if (column := batch.candidates.fields[f.name]) is not None
        },
    )
    assert isinstance(ranker, ItemKeeper)
    assert ranker.keep_items(about) == ranker.kept.num_bytes + ranker.kept_contents.num_bytes
    assert ranker.kept.rows(batch.candidates) is None  # a gradient may be wanted
    with torch.no_grad():
        assert ranker.kept.rows(batch.candidates) is not None
    torch.testing.assert_close(logits(ranker, batch), wanted, rtol=1e-5, atol=1e-5)
    ranker.train()
    assert not ranker.kept_contents.num_bytes


def test_the_state_holds_items_and_not_their_contents():
    ranker, batch = em3(), make_batch(SPEC, [(9, 6)], 0)
    state = ranker.encode(batch.histories)
    assert torch.equal(state.item, batch.histories.item)
    assert not any(f.name == "content" for f in dataclasses.fields(state))


def test_a_run_goes_on_as_if_it_had_not_stopped():
    first, batch = fresh(1, fresh_targets=3).train(), make_batch(SPEC, [(6, 9), (5, 4)], 0)
    optimiser = torch.optim.SGD([p for p in first.parameters() if p.dim()], lr=0.05)

    def step(ranker, optimiser, seed):
        torch.manual_seed(seed)
        output = ranker(batch.histories, batch.candidates, batch.context)
        optimiser.zero_grad()
        (output.logits.square().mean() + sum(output.aux_losses.values())).backward()
        optimiser.step()
        return output.logits.detach()

    for seed in range(3):
        step(first, optimiser, seed)
    second = fresh(2, fresh_targets=3).train()
    second.load_state_dict(first.state_dict())
    again = torch.optim.SGD(second.parameters(), lr=0.05)
    for seed in range(3, 6):
        assert torch.equal(step(first, optimiser, seed), step(second, again, seed))


def test_data_without_content_are_refused():
    with pytest.raises(SpecError, match="EM3 lives by the content of items and the data have none"):
        EM3(EM3Config(), dataclasses.replace(SPEC, content=()))
    ranker = EM3(EM3Config(**SMALL), SPEC).eval()
    with pytest.raises(RunError, match="must be handed over before a ranker is asked"):
        logits(ranker, make_batch(SPEC, [(3, 2)], 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end_to_end": "images"}, "end_to_end must be one of tokens, states, off"),
        ({"history_map": "low"}, "history_map must be one of"),
        ({"lora_rank": 0}, "lora_rank must be at least 1"),
        ({"contrastive_weight": -1.0}, "contrastive_weight must be 0"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature must be above 0"),
        ({"fusion_dropout": 1.0}, r"fusion_dropout must be in \[0, 1\)"),
        ({"normalise": "mean"}, "normalise must be one of"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        EM3Config(**changes)


# -- the planted world ------------------------------------------------------------------------------------------------


def trained(model, data, folder, seed):
    """Train on a world and return the validation predictions."""
    run = run_training(
        data,
        folder,
        RunConfig(
            name=model,
            model=model,
            model_config=default_config(model),
            training=TrainingConfig(seed=seed, batch_requests=32, evaluations_per_epoch=1, patience=0),
            budget=Budget(name="world", epochs=2),
        ),
    )
    return load_predictions(run.folder / "predictions" / "valid.npz")


def of_new_items(predictions):
    """Return labels and logits of candidates that training never met, as the evaluation slices have them."""
    cut = by_new_item(predictions)
    new = cut.code == cut.parts.index("new")
    return predictions.label[new], predictions.logit[new]


def linear_head(data):
    """Return the AUC on new items of a linear head over frozen vectors: the item's, and their product with the user's
    mean."""
    stored = [np.load(data.folder / "content" / name / "vectors.npy") for name in ("text", "image")]
    vectors = np.concatenate([v.astype(np.float64) for v in stored], 1)
    b = data.behaviours
    inputs, labels, new = {}, {}, None
    met = np.unique(np.concatenate([b.item, data.requests("train").item]))
    for split in ("train", "valid"):
        r = data.requests(split)
        mean = np.stack(
            [
                vectors[b.item[b.offsets[u] : b.offsets[u] + p]].mean(0) if p else np.zeros(vectors.shape[1])
                for u, p in zip(r.user, r.prefix, strict=True)
            ]
        )
        own, of_user = vectors[r.item], np.repeat(mean, np.diff(r.offsets), axis=0)
        inputs[split], labels[split] = np.concatenate([own, own * of_user, of_user], 1), np.asarray(r.label)
        new = ~np.isin(r.item, met)
    head = LogisticRegression(max_iter=500).fit(inputs["train"], labels["train"])
    return auc(labels["valid"][new], head.decision_function(inputs["valid"])[new])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_items_unseen_in_training_are_ranked_by_their_content(tmp_path, seed):
    """em3.md section 9, properties 8 and 9: above a ranker of ids, and above frozen vectors into a linear head."""
    data = world_prepared("mixed_content", tmp_path / "data", events=16_000, requests=3_000, seed=seed)
    by_content = auc(*of_new_items(trained("em3", data, tmp_path / "em3", seed)))
    by_id = auc(*of_new_items(trained("din", data, tmp_path / "din", seed)))
    assert by_content > 0.75
    assert by_id == pytest.approx(0.5, abs=0.06)
    assert by_content > by_id + 0.02
    assert linear_head(data) < by_content - 0.02
