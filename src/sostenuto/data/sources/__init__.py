"""Built-in data sets by name: located as an installed package or a given folder, never copied here."""

from __future__ import annotations

from pathlib import Path

from sostenuto.data.sources import (
    amazon,
    complete_journey,
    foursquare,
    instacart,
    lastfm,
    lbsn,
    movielens,
    taobao,
    trivago,
)
from sostenuto.data.sources.locating import Source, get, locate
from sostenuto.data.spec import DataSpec
from sostenuto.schema.errors import SpecError, did_you_mean

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        complete_journey.SOURCE,
        movielens.SOURCE,
        movielens.LIKED_SOURCE,
        instacart.SOURCE,
        foursquare.SOURCE,
        trivago.SOURCE,
        lastfm.SOURCE,
        *lbsn.SOURCES,
        *amazon.SOURCES,
        taobao.SOURCE,
    )
}


def find_source(name: str) -> Source:
    """Return the source of that name.

    Raises:
        SpecError: no built-in data set has this name.
    """
    if name not in SOURCES:
        raise SpecError(
            f"data set must be one of {', '.join(SOURCES)}, or the path of a spec, got {name!r}."
            f"{did_you_mean(name, SOURCES)}"
        )
    return SOURCES[name]


def open_source(name: str, cache: str | Path, *, folder: str | Path | None = None) -> DataSpec:
    """Return the spec of a built-in data set, its files located and converted where needed.

    Args:
        name:   one of `SOURCES`.
        cache:  folder for converted tables; keep it until `prepare` is done.
        folder: where the files lie; default: the installed package.
    Raises:
        MissingSource: the files are not there; the text has the command that gets them.
    """
    source = find_source(name)
    found = locate(source, folder)
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    return source.build(found.resolve(), cache.resolve())


__all__ = ["SOURCES", "Source", "find_source", "get", "locate", "open_source"]
