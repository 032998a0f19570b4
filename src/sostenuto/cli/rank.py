"""`sostenuto rank`: what one user would be shown, and which past behaviours carried it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sostenuto.cli.chosen_run import chosen_run
from sostenuto.cli.output import JsonOption, note, print_json, print_lines, print_table

if TYPE_CHECKING:
    from sostenuto.serving.ranking import Ranking

DAY_MS = 86_400_000


def rank(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or a comparison: then its best run.")],
    user: Annotated[str, typer.Option(help="User, as in the log.")],
    at: Annotated[
        str | None,
        typer.Option(
            help="Moment of the request, e.g. 2017-12-20T17:30, in the data's zone. Default: after the last event."
        ),
    ] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            help="Item, as in the log; give it several times, or @FILE with one a line. Default: the protocol's."
        ),
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="Items to return.")] = 10,
    explain: Annotated[bool, typer.Option(help="Name the past behaviours that carried each score.")] = True,
    data: Annotated[Path | None, typer.Option(help="Prepared folder. Default: the one of the run.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rank for one user, and say why.

    Beside each item stand the past behaviours whose removal lowers its score most.
    """
    from sostenuto.models.table import entry_of
    from sostenuto.serving.ranking import HistoryRanker
    from sostenuto.training.run import open_run

    opened = open_run(chosen_run(run), data)
    zone = opened.data.manifest.time_zone

    gives_probabilities = entry_of(opened.config.model).gives_probabilities
    ranker = HistoryRanker(opened.data, opened.collator, opened.ranker, gives_probabilities=gives_probabilities)
    ranking = ranker.rank(
        user,
        time_ms=None if at is None else moment_ms(at, zone),
        candidates=None if not candidates else read_candidates(candidates),
        k=k,
        explain=explain,
    )
    if as_json:
        print_json({"run": str(opened.folder), "model": opened.config.model, **asdict(ranking)})
    else:
        show(ranking, opened.config.name, zone)


def show(ranking: Ranking, model: str, zone: str) -> None:
    """Print a ranking for people; what a rule or a search gives is a score, not a probability."""
    when = local_text(ranking.time_ms, zone)
    place = f" at place {ranking.place}" if ranking.place else ""
    print_lines(
        f"User {ranking.user_id} on {when}{place}: {ranking.history_length:,} past behaviours, "
        f"{ranking.num_candidates:,} candidates, ranked by {model}"
    )
    kind = "probability" if all(item.probability is not None for item in ranking.items) else "score"
    rows = [
        (
            str(item.rank),
            item.item_id,
            item.label,
            f"{item.logit:.2f}" if item.probability is None else f"{item.probability:.3f}",
            "; ".join(
                f"{reason.label} {reason.count}x, last {ago((ranking.time_ms - reason.last_time_ms) / DAY_MS)}"
                for reason in item.reasons
            ),
        )
        for item in ranking.items
    ]
    print_table("", ("", "item", "name", kind, "because of"), rows, numbers=("", kind))


def ago(days: float) -> str:
    """Say how long ago.

    >>> [ago(d) for d in (0.2, 1.5, 9, 80)]
    ['today', '1 day ago', '9 days ago', '11 weeks ago']
    """
    if days < 1:
        return "today"
    if days < 2:
        return "1 day ago"
    return f"{days:.0f} days ago" if days < 21 else f"{days / 7:.0f} weeks ago"


def local_text(time_ms: int, zone: str) -> str:
    """Return epoch milliseconds as local time.

    >>> local_text(1483271606000, "America/New_York")
    '2017-01-01 06:53'
    """
    from datetime import datetime
    from zoneinfo import ZoneInfo

    return f"{datetime.fromtimestamp(time_ms / 1000, ZoneInfo(zone)):%Y-%m-%d %H:%M}"


def moment_ms(text: str, zone: str) -> int:
    """Return an ISO date or time as epoch milliseconds; without an offset it is local to `zone`.

    >>> moment_ms("2017-01-01T06:53:26", "America/New_York")
    1483271606000
    """
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from sostenuto.schema.errors import SpecError

    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SpecError(f"--at must be an ISO time such as 2017-12-20T17:30, got {text!r}; write it so") from error
    return round((moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))).timestamp() * 1000)


def read_candidates(given: list[str]) -> list[str]:
    """Return raw item ids: as given, or the lines of @FILE; doubles are dropped with a remark."""
    from sostenuto.schema.errors import SpecError

    wanted: list[str] = []
    for text in given:
        if not text.startswith("@"):
            wanted.append(text)
            continue
        path = Path(text[1:])
        if not path.is_file():
            raise SpecError(f"--candidates must be an item or @FILE, {path} is no file; give the path of a text file")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise SpecError(f"--candidates @FILE must be UTF-8 text, {path} is not: {error}; write it so") from error
        wanted += [line.strip() for line in lines if line.strip()]
    distinct = list(dict.fromkeys(wanted))
    if len(distinct) < len(wanted):
        note(f"{len(wanted) - len(distinct)} candidates were given twice and are ranked once")
    return distinct


__all__ = ["ago", "local_text", "moment_ms", "rank", "read_candidates", "show"]
