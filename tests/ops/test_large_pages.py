from __future__ import annotations

import pytest
import torch

from sostenuto.ops.large_pages import LEAST, on_large_pages


@pytest.mark.parametrize("numbers", [0, 1, LEAST // 4 - 1, LEAST // 4, LEAST + 12_345])
def test_asking_gives_the_same_tensor_with_the_same_values(numbers):
    tensor = torch.arange(numbers, dtype=torch.int32)
    assert on_large_pages(tensor) is tensor
    assert torch.equal(tensor, torch.arange(numbers, dtype=torch.int32))


def test_memory_elsewhere_is_left_alone():
    tensor = torch.empty(LEAST, device="meta")
    assert on_large_pages(tensor) is tensor
