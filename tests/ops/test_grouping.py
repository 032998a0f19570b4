import torch
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.ops.grouping import halving_tree, split_groups

CELLS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)


@given(cells=CELLS, most=st.integers(1, 5))
def test_groups_are_bounded_and_split_only_where_they_must_be(cells, most):
    group, coarse, fine = (torch.tensor(column) for column in zip(*cells, strict=True))
    found = split_groups(group, [coarse, fine], torch.arange(len(cells)), most)
    sizes = torch.bincount(found)
    assert int(sizes.max()) <= most
    assert (sizes > 0).all()
    whole = torch.bincount(group)[group]
    of_coarse = {}
    for i in range(len(cells)):
        of_coarse.setdefault((cells[i][0], cells[i][1]), []).append(i)
        same = found == found[i]
        assert (group[same] == group[i]).all()
        if int(whole[i]) <= most:
            assert int(sizes[found[i]]) == int(whole[i])
        else:
            assert (coarse[same] == coarse[i]).all()
    for key, members in of_coarse.items():
        if int(whole[members[0]]) > most >= len(members):
            assert len({int(found[i]) for i in members}) == 1, key


def test_equals_are_cut_into_runs_in_the_order_of_their_rank():
    rank = torch.tensor([4, 0, 3, 1, 2])
    found = split_groups(torch.zeros(5, dtype=torch.int64), [], rank, 2)
    by_rank = found[rank.argsort()]
    assert by_rank[0] == by_rank[1]
    assert by_rank[2] == by_rank[3]
    assert len(found.unique()) == 3


def test_a_tree_puts_near_vectors_together_whatever_their_order():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0], [3.0], [40.0], [43.0]]) * torch.ones(6)
    which = torch.arange(80) % 4
    points = centres[which] + 0.1 * torch.randn(80, 6, generator=generator)
    code = halving_tree(points, 2)
    assert [len(code[which == c].unique()) for c in range(4)] == [1, 1, 1, 1]
    assert len(code.unique()) == 4
    order = torch.randperm(80, generator=generator)
    assert torch.equal(halving_tree(points[order], 2), code[order])
    assert not halving_tree(torch.zeros(5, 3), 4).any()
    deep = halving_tree(points, 16)
    assert torch.equal(deep >> 14, code)
