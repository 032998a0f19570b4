"""One measurement's data and calls, ready to be timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sostenuto.bench.work import Work

Call = Callable[[], object]
PLAIN_TWIN = "the same operator in plain torch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is timed, and the work that it cannot do without."""

    work: Work
    ours: Call
    plain: Call
    against: str = PLAIN_TWIN  # what `plain` is
    naive: Call | None = None


def beside_plain_twin(work: Work, call: Call, naive: Call | None = None) -> Case:
    """Time an operator with the compiled library in use against itself without one."""
    from sostenuto.ops.backend import using

    def plain() -> object:
        with using(None):
            return call()

    return Case(work=work, ours=call, plain=plain, naive=naive)


__all__ = ["PLAIN_TWIN", "Call", "Case", "beside_plain_twin"]
