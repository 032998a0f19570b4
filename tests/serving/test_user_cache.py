"""A cache of users: within its bytes, the longest unused goes first, and codes are enough to forget."""

from __future__ import annotations

from sostenuto.serving.user_cache import UserCache


def test_the_one_unused_for_longest_goes_first():
    cache: UserCache[str] = UserCache(10)
    for n, name in enumerate("abc"):
        cache.keep(name, name.upper(), user=n, size=3)
    assert cache.get("a") == "A"
    cache.keep("d", "D", user=3, size=4)
    assert [cache.get(name) for name in "abcd"] == ["A", None, "C", "D"]
    assert cache.num_bytes == 10
    cache.keep("e", "E", user=4, size=11)  # larger than all there is
    assert cache.get("e") is None
    assert len(cache) == 3


def test_a_value_is_replaced_and_forgotten_by_name_and_by_code():
    cache: UserCache[int] = UserCache(100)
    cache.keep("a", 1, user=7, size=40)
    cache.keep("a", 2, user=8, size=50)
    assert (cache.get("a"), cache.num_bytes) == (2, 50)
    cache.keep("b", 3, user=9, size=5)
    cache.forget_codes({7, 9})
    assert (cache.get("a"), cache.get("b"), cache.num_bytes) == (2, None, 50)
    cache.forget("a")
    assert (len(cache), cache.num_bytes) == (0, 0)
