"""Events of tests."""

from sostenuto.schema.events import Event


def event(number, *, user="ann", item=None, time_ms=None, **rest):
    """Return the event of a number; its time is the number in seconds."""
    return Event(
        event_id=f"e{number}",
        user_id=user,
        item_id=f"i{number % 7}" if item is None else item,
        time_ms=1_000 * number if time_ms is None else time_ms,
        **rest,
    )


def seen(store, user="ann", **options):
    """Return the times of a user's history."""
    history = store.history(user, **options)
    return None if history is None else history.time_ms.tolist()


def outcomes(answers):
    return [answer.outcome for answer in answers]
