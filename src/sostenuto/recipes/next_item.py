"""Rankers that search a whole catalogue for the next item."""

from __future__ import annotations

import dataclasses

from sostenuto.features.view import HistoryView
from sostenuto.models.table import default_config
from sostenuto.training.config import Budget, RunConfig, TrainingConfig


def sasrec() -> RunConfig:
    """Train SASRec with a sampled softmax, for the Amazon sets.

    Published in the eSASRec study (github.com/blondered/transformer_benchmark): one block, one head, newest 50, sampled
    softmax, uniform negatives, 0.001 constant, dropout 0.2, width 64 or 256. Ours, chosen on validation of Beauty:
    width, dropout, learning rates and their fall, negatives shared by a batch, epochs.
    """
    return RunConfig(
        name="sasrec",
        model="sasrec",
        model_config=dataclasses.replace(
            default_config("sasrec"), width=128, hidden=128, dropout=0.5, category_dim=0, field_dim=0
        ),
        view=HistoryView(recent=50, match=False),
        training=TrainingConfig(
            learning_rate=1e-3,
            table_learning_rate=3e-3,
            weight_decay=0.0,
            table_decay=0.0,
            schedule="linear",
            weighting="candidate",
            batch_requests=1_200,
            negatives=512,
            evaluation_batch_requests=256,
            evaluations_per_epoch=1,
            patience=10,
            metric="ndcg@10",
            exclude_seen=True,
        ),
        budget=Budget(name="next-item", valid=3_000, epochs=20),
    )


def sasrec_content() -> RunConfig:
    """Train SASRec whose item vectors also read categories and item fields. Ours."""
    base = sasrec()
    model_config = dataclasses.replace(base.model_config, category_dim=32, field_dim=32)
    training = dataclasses.replace(base.training, first_moments=False, table_learning_rate=4e-3)
    return dataclasses.replace(
        base,
        name="sasrec_content",
        model_config=model_config,
        training=training,
        budget=dataclasses.replace(base.budget, epochs=16),  # 32 were learnt by heart
    )


def hstu() -> RunConfig:
    """Train HSTU for retrieval: relative biases of positions and time, temperature .05 as published.

    Ours: width, blocks, dropout (.2 in the released configurations), and all that is shared with `sasrec`.
    """
    base = sasrec()
    return dataclasses.replace(
        base,
        name="hstu",
        model="hstu",
        model_config=dataclasses.replace(
            default_config("hstu"), width=128, input_dropout=0.3, dropout=0.3, category_dim=0, field_dim=0
        ),
    )


def hstu_no_time() -> RunConfig:
    """Train HSTU where times are only an order: relative positions alone."""
    base = hstu()
    model_config = dataclasses.replace(base.model_config, time_bias=False)
    return dataclasses.replace(base, name="hstu_no_time", model_config=model_config)


__all__ = ["hstu", "hstu_no_time", "sasrec", "sasrec_content"]
