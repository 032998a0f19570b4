"""Request protocols by name: how a log without (or with) exposures becomes requests, candidates and labels."""

from __future__ import annotations

import importlib
from typing import cast

from sostenuto.data.protocols.core import Core, MadeRequests, RequestProtocol
from sostenuto.schema.errors import SpecError, did_you_mean

# name -> "module:object"; loaded when asked for
PROTOCOLS: dict[str, str] = {
    "complete-journey": "sostenuto.data.protocols.complete_journey:CompleteJourney",
    "exposures": "sostenuto.data.protocols.exposures:Exposures",
    "global-time": "sostenuto.data.protocols.global_time:GlobalTime",
    "leave-last-out": "sostenuto.data.protocols.leave_last_out:LeaveLastOut",
}


def load_protocol(name: str) -> RequestProtocol:
    """Return the protocol of that name.

    Raises:
        SpecError: no protocol has this name.
    """
    if name not in PROTOCOLS:
        raise SpecError(
            f"protocol must be one of {', '.join(sorted(PROTOCOLS))}, got {name!r}."
            f"{did_you_mean(name, PROTOCOLS)} See docs/data.md"
        )
    module, _, attribute = PROTOCOLS[name].partition(":")
    return cast(RequestProtocol, getattr(importlib.import_module(module), attribute)())


__all__ = ["PROTOCOLS", "Core", "MadeRequests", "RequestProtocol", "load_protocol"]
