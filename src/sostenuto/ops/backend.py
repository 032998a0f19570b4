"""Which form of the operators runs: the plain torch definitions, or their compiled twins where they are built."""

from __future__ import annotations

from sostenuto.native.library import available, library, notice, using

__all__ = ["available", "library", "notice", "using"]
