"""Rows kept while training."""

from __future__ import annotations

import torch

from sostenuto.layers.refreshed_rows import RefreshedRows


def test_every_row_is_refreshed_once_a_round_and_no_more_than_asked():
    cache, asked = RefreshedRows(10, 2), []

    def make(item):
        asked.append(item.tolist())
        return item[:, None].float().expand(-1, 2)

    cache.fill(make)
    assert cache.rows[:, 0].tolist() == list(range(10))
    asked.clear()
    ends = [cache.refresh(make, 4) for _ in range(6)]
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * 2
    assert ends == [False, False, True] * 2
    assert not cache.refresh(make, 0)
    cache.write(torch.tensor([7, 1]), torch.full((2, 2), -1.0, requires_grad=True))
    assert not cache.rows.requires_grad
    assert (cache.rows[[1, 7]] == -1).all()


def test_rows_of_a_resumed_run_go_on_where_they_were():
    first, second = RefreshedRows(9, 2), RefreshedRows(9, 2)
    first.fill(lambda item: item[:, None].float().expand(-1, 2))
    first.refresh(lambda item: torch.ones(len(item), 2), 4)
    second.load_state_dict(first.state_dict())
    assert bool(second.filled)
    assert int(second.cursor) == 4
    assert torch.equal(first.rows, second.rows)
