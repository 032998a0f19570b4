"""Rankers that search a whole catalogue for the next item."""

from __future__ import annotations

import dataclasses

from sostenuto.features.view import HistoryView
from sostenuto.models.table import default_config
from sostenuto.training.config import Budget, RunConfig, TrainingConfig


def sasrec() -> RunConfig:
    """Train SASRec with a sampled softmax, for the Amazon sets.

    Published in the eSASRec study (github.com/blondered/transformer_benchmark, page of hyper-parameters): one block,
    one head, newest 50, sampled softmax, 256 uniform negatives for each position. Published in the library it runs on
    (RecTools, transformers): dropout on item vectors, positions from the newest behaviour, 128 users in a batch (750
    requests of Beauty), Adam with betas .9 and .98 over all rows, no clipping, no decay, no target without a history.
    Ours, chosen on validation of Beauty: width 128 and dropout .3, where the study has 64 and .2; a learning rate of
    .002 that falls in 32 epochs, where it has .001 without a fall and at most 200 epochs; 16 requests share a draw of
    negatives; weights chosen by NDCG@10 on 6,000 requests.
    """
    return RunConfig(
        name="sasrec",
        model="sasrec",
        model_config=dataclasses.replace(
            default_config("sasrec"),
            width=128,
            hidden=128,
            dropout=0.3,
            item_dropout=0.3,
            positions="last",
            table_std=0.013,  # RecTools: xavier over the table, sqrt(2 / (items + width))
            category_dim=0,
            field_dim=0,
        ),
        view=HistoryView(recent=50, match=False),
        training=TrainingConfig(
            learning_rate=2e-3,
            table_learning_rate=2e-3,
            table_clock="step",
            adam_betas=(0.9, 0.98),
            weight_decay=0.0,
            table_decay=0.0,
            schedule="linear",
            max_grad_norm=float("inf"),
            weighting="candidate",
            batch_requests=750,
            first_moments=False,
            negatives=256,
            negative_draws=47,  # of a batch: 16 requests each
            evaluation_batch_requests=256,
            evaluations_per_epoch=1,
            patience=10,
            metric="ndcg@10",
            exclude_seen=True,
        ),
        budget=Budget(name="next-item", valid=6_000, epochs=32),
    )


def sasrec_content() -> RunConfig:
    """Train SASRec whose item vectors also read categories and item fields. Ours, chosen on validation of Beauty."""
    base = sasrec()
    return dataclasses.replace(
        base,
        name="sasrec_content",
        model_config=dataclasses.replace(
            base.model_config,
            dropout=0.5,
            item_dropout=0.0,
            positions="first",
            table_std=0.02,
            category_dim=32,
            field_dim=32,
        ),
        training=dataclasses.replace(
            base.training,
            learning_rate=1e-3,
            table_learning_rate=4e-3,
            table_clock="row",
            adam_betas=(0.9, 0.999),
            max_grad_norm=5.0,
            batch_requests=1_200,
            negatives=512,
            negative_draws=1,
        ),
        budget=dataclasses.replace(base.budget, epochs=16),  # twice as many were learnt by heart
    )


def hstu() -> RunConfig:
    """Train HSTU for retrieval: relative biases of positions and time.

    Published (github.com/meta-recsys/generative-recommenders): temperature .05 and dropout .2. The number of blocks is
    ours, and all that concerns training is that of `sasrec`, but for 24 epochs.
    """
    base = sasrec()
    return dataclasses.replace(
        base,
        name="hstu",
        model="hstu",
        model_config=dataclasses.replace(
            default_config("hstu"), width=64, input_dropout=0.2, dropout=0.2, category_dim=0, field_dim=0
        ),
        budget=dataclasses.replace(base.budget, epochs=24),
    )


def hstu_no_time() -> RunConfig:
    """Train HSTU where times are only an order: relative positions alone."""
    base = hstu()
    model_config = dataclasses.replace(base.model_config, time_bias=False)
    return dataclasses.replace(base, name="hstu_no_time", model_config=model_config)


__all__ = ["hstu", "hstu_no_time", "sasrec", "sasrec_content"]
