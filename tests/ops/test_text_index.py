"""Numbers of texts against a dictionary, by the plain form and by every compiled twin."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sostenuto.native.library import available, using
from sostenuto.ops.text_index import TextIndex

FORMS = {"plain": None, **available()}
TEXTS = st.text(st.sampled_from("ab01 \0é日"), max_size=20)  # few letters: many that begin alike


@pytest.mark.parametrize("form", FORMS)
@given(texts=st.lists(TEXTS, unique=True, max_size=60), others=st.lists(TEXTS, max_size=30))
def test_numbers_are_those_of_a_dictionary(form, texts, others):
    asked = [*others, *texts, *reversed(texts)]
    number = {text: n for n, text in enumerate(texts)}
    expected = [number.get(text, -1) for text in asked]
    with using(FORMS[form]):
        index = TextIndex(texts)
        for some in (asked, [text for text in asked if text.isascii()]):
            np.testing.assert_array_equal(index.find(some), [number.get(text, -1) for text in some])
    assert [index.get(text, -1) for text in asked] == expected


@pytest.mark.parametrize("form", FORMS)
def test_a_large_table_and_lone_surrogates(form):
    texts = [f"item-{n * 7919 % 100_003}" for n in range(50_000)] + ["\ud800"]
    with using(FORMS[form]):
        index = TextIndex(texts)
        np.testing.assert_array_equal(index.find(texts[:50_000]), np.arange(50_000))
        np.testing.assert_array_equal(index.find(["\ud800", "item-x", ""]), [50_000, -1, -1])
        assert len(index.find([])) == 0


@pytest.mark.parametrize("form", FORMS)
def test_threads_that_ask_first_and_together_are_told_the_same(form):
    texts = [f"item-{n}" for n in range(100_000)]
    for _ in range(3):
        index = TextIndex(texts)
        with using(FORMS[form]), ThreadPoolExecutor(4) as threads:
            for found in threads.map(index.find, [texts] * 8):
                np.testing.assert_array_equal(found, np.arange(len(texts)))


def test_an_index_can_be_copied():
    index = TextIndex(["a", "b"])
    copied = pickle.loads(pickle.dumps(index))
    np.testing.assert_array_equal(copied.find(["b", "c", "a"]), index.find(["b", "c", "a"]))


def test_a_text_that_stands_twice_or_is_none_is_refused():
    with pytest.raises(ValueError, match="1 stand there twice"):
        TextIndex(["a", "b", "a"])
    with pytest.raises(TypeError):
        TextIndex(["a"]).find([None])
