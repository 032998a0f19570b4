"""Every exception that Sostenuto raises on purpose.

    SostenutoError
    |- SpecError (ValueError)            a spec, a recipe or an option says something we refuse
    |- DataError (ValueError)            the data themselves break a promise
    |- RunError (RuntimeError)           a run folder is missing, half-written or of another format
    |- BundleError (RuntimeError)        an exported bundle is damaged, of another format, or no bundle
    |- StateError (ValueError)           stored bytes are not a user state of this ranker
    |- RequestError (ValueError)         a request to the server is refused; its text is shown to whoever sent it
    |  |- NotFound                       it names something that is not there
    |  `- Conflict                       it cannot be done as things stand
    |- NotReady (RuntimeError)           the server cannot answer yet, or no longer
    |- NoLibrary (RuntimeError)          the compiled operators are asked for and cannot be had
    |- StoreError (RuntimeError)         a store of events did not do what it was asked; nothing is half-written
    |  |- StoreFull                      it has no room left: its limit, the server's memory, or the disk
    |  |- StoreGone                      it cannot be reached, opened or written
    |  |- StoreBusy                      too much is waiting to be written: come again in a moment
    |  |- StoreDamaged                   its contents contradict themselves
    |  `- StreamTrimmed                  changes that were asked for are no longer kept
    |- MissingSource (FileNotFoundError) a data set is not on this machine; the text says how to get it
    `- MissingExtra (ImportError)        an optional dependency is needed; the text names the extra

One sentence form everywhere: what, must be what, came what, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SostenutoError(Exception):
    """Root of all errors raised on purpose."""


class SpecError(SostenutoError, ValueError):
    """A spec, recipe or option is refused; the text names the field, the value and the fix."""


class DataError(SostenutoError, ValueError):
    """The data break a promise that later rooms rely on."""


class RunError(SostenutoError, RuntimeError):
    """A run folder cannot be used as it stands."""


class BundleError(SostenutoError, RuntimeError):
    """A bundle cannot be opened; the text names the file."""


class StateError(SostenutoError, ValueError):
    """Stored bytes cannot be read as a user state, or a state cannot be stored."""


class RequestError(SostenutoError, ValueError):
    """A request to the server is refused. The text goes to the caller: no paths, no internals."""


class NotFound(RequestError):
    """A request names something that is not there."""


class Conflict(RequestError):
    """A request is right in itself and cannot be done as things stand."""


class NotReady(SostenutoError, RuntimeError):
    """The server cannot answer yet, or no longer."""


class NoLibrary(SostenutoError, RuntimeError):
    """The compiled library was asked for and cannot be had."""


class StoreError(SostenutoError, RuntimeError):
    """A store of events did not do what it was asked; what it held before it still holds."""


class StoreFull(StoreError):
    """There is no room for what was to be written; reading and deleting still work."""


class StoreGone(StoreError):
    """The store cannot be reached, opened or written; whether the last write took place is not known."""


class StoreBusy(StoreError):
    """More is waiting to be written than may wait; nothing of this call was taken."""


class StoreDamaged(StoreError):
    """The store's contents contradict themselves; the text says how to check and restore it."""


class StreamTrimmed(StoreError):
    """Changes after the given sequence were trimmed: a consumer must start again from all events."""


class MissingSource(SostenutoError, FileNotFoundError):
    """A data set is not here; the text holds the exact command that gets it."""


class MissingExtra(SostenutoError, ImportError):
    """An optional dependency is missing; the text names the extra to install."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known word, or "" when none is near.

    >>> did_you_mean("uesr", ["user", "item"])
    " Did you mean 'user'?"
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


__all__ = [
    "BundleError",
    "Conflict",
    "DataError",
    "MissingExtra",
    "MissingSource",
    "NoLibrary",
    "NotFound",
    "NotReady",
    "RequestError",
    "RunError",
    "SostenutoError",
    "SpecError",
    "StateError",
    "StoreBusy",
    "StoreDamaged",
    "StoreError",
    "StoreFull",
    "StoreGone",
    "StreamTrimmed",
    "did_you_mean",
]
