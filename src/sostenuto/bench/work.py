"""What an operation cannot do without: numbers computed, bytes moved, rows fetched from random places."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGather:
    """Rows read from, or written to, random places of a table."""

    rows: float
    row_bytes: int
    table_bytes: int  # of all that is touched at random: says whether a cache can hold it

    @property
    def moved_bytes(self) -> float:
        """Bytes of all the rows."""
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Counted from the definition of an operation and its sizes, whatever form computes it.

    Arguments are read once and results written once, in the types they have; nothing between them need ever leave the
    registers. A form that moves or computes more (padding, copies, a second pass) has a smaller share of the limit.
    An addition, a multiplication and a comparison are one operation each.
    """

    flops: float = 0.0  # float32
    double_flops: float = 0.0  # float64: half as many fit a register
    streamed_bytes: float = 0.0  # read or written in order
    gathers: tuple[RowGather, ...] = ()

    @property
    def operations(self) -> float:
        """Operations of both types."""
        return self.flops + self.double_flops

    @property
    def gathered_bytes(self) -> float:
        """Bytes of rows at random places."""
        return sum(gather.moved_bytes for gather in self.gathers)

    @property
    def moved_bytes(self) -> float:
        """Bytes that must move."""
        return self.streamed_bytes + self.gathered_bytes


__all__ = ["RowGather", "Work"]
