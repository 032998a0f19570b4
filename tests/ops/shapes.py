"""Row lengths that tests of jagged operations draw."""

import torch
from hypothesis import strategies as st

lengths_lists = st.lists(st.integers(0, 7), min_size=0, max_size=5)
row_pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=4)


def offsets_of(lengths):
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(lengths, dtype=torch.int64).cumsum(0)])
