"""From what was served, and what users did, to prepared data."""

import polars as pl
import pytest
from tests.serving.test_served_log import line

from sostenuto.data.preparation import prepare
from sostenuto.data.spec import load_spec
from sostenuto.schema.errors import DataError, SpecError
from sostenuto.schema.events import Event
from sostenuto.serving.feedback import Collecting, collect
from sostenuto.serving.served_log import ServedList, ServedLog, ServedLogSettings
from sostenuto.serving.stores.layout import RecordLayout
from sostenuto.serving.stores.opening import open_store

HOUR = 3_600_000
FAR = 10**13


def shown(user, request, time_ms, items, **more) -> ServedList:
    given = {name: getattr(line(), name) for name in ServedList.__dataclass_fields__}
    prices = [float(n) for n in range(len(items) + 1)]
    given |= {
        "user_id": user,
        "request_id": request,
        "time_ms": time_ms,
        "candidates": ["never-shown", *items],
        "candidate_fields": {"price": prices},
        "order": list(range(1, len(items) + 1)),
        "scores": [1.0] * len(items),
        "propensities": [0.5] * len(items),
    }
    return ServedList(**{**given, **more})


def did(user, item, time_ms, event_id, action="buy", **fields) -> Event:
    return Event(event_id=event_id, user_id=user, item_id=item, time_ms=time_ms, action=action, fields=fields)


@pytest.fixture
def world(tmp_path):
    """Return a function that stores lists and events, and collects them."""

    def make(lists, events, layout=None, now_ms=FAR, **settings):
        log = ServedLog(ServedLogSettings(folder=tmp_path / "served"))
        for one in lists:
            log.write(one)
        log.close()
        with open_store(tmp_path / "store", layout or RecordLayout()) as store:
            if events:
                store.append(events)
            found = collect(store, tmp_path / "served", tmp_path / "out", Collecting(**settings), now_ms=now_ms)
        return found, pl.read_parquet(tmp_path / "out" / "exposures.parquet")

    return make


def labels(exposures) -> dict[tuple[str, str], float]:
    return {(row["request"], row["item"]): row["label"] for row in exposures.to_dicts()}


def test_what_was_taken_afterwards_and_in_time_has_label_one(world):
    found, exposures = world(
        [shown("u", "r1", HOUR, ["a", "b", "c", "d", "e"])],
        [
            did("u", "a", 2 * HOUR, "1"),
            did("u", "b", HOUR, "2"),  # at the moment itself
            did("u", "c", HOUR - 1, "3"),  # before
            did("u", "d", 30 * HOUR, "4"),  # too late
            did("v", "e", 2 * HOUR, "5"),  # somebody else
        ],
    )
    assert labels(exposures) == {("r1", "a"): 1, ("r1", "b"): 0, ("r1", "c"): 0, ("r1", "d"): 0, ("r1", "e"): 0}
    assert (found.lists, found.exposures, found.taken, found.events) == (1, 5, 1, 5)


def test_an_event_takes_the_newest_list_that_showed_the_item(world):
    _, exposures = world(
        [shown("u", "r1", HOUR, ["a"]), shown("u", "r2", 2 * HOUR, ["a"]), shown("u", "r3", 5 * HOUR, ["a"])],
        [did("u", "a", 3 * HOUR, "1")],
    )
    assert labels(exposures) == {("r1", "a"): 0, ("r2", "a"): 1, ("r3", "a"): 0}


def test_an_event_that_names_its_request_takes_that_one(world):
    layout = RecordLayout(fields=(("request_id", "categorical"),))
    lists = [shown("u", f"r{n}", n * HOUR, ["a", "b"]) for n in (1, 2)]
    _, exposures = world(
        lists, [did("u", "a", 3 * HOUR, "1", request_id="r1"), did("u", "b", 3 * HOUR, "2")], layout=layout
    )
    assert labels(exposures) == {("r1", "a"): 1, ("r1", "b"): 0, ("r2", "a"): 0, ("r2", "b"): 1}


def test_only_actions_that_take_count(world):
    _, exposures = world(
        [shown("u", "r1", HOUR, ["a", "b"])],
        [did("u", "a", 2 * HOUR, "1", action="view"), did("u", "b", 2 * HOUR, "2")],
        taken=("buy",),
    )
    assert labels(exposures) == {("r1", "a"): 0, ("r1", "b"): 1}


def test_lists_whose_window_is_open_are_left_out(world):
    found, exposures = world(
        [shown("u", "r1", HOUR, ["a"]), shown("u", "r2", 3 * HOUR, ["a"])], [], now_ms=4 * HOUR, within_s=7_200
    )
    assert set(exposures["request"]) == {"r1"}
    assert found.open_lists == 1


def test_position_propensity_and_fields_are_those_of_what_was_shown(world):
    _, exposures = world([shown("u", "r1", HOUR, ["a", "b"], order=[2, 1], propensities=[0.9, 0.1])], [])
    rows = exposures.select("item", "position", "propensity", "candidate.price", "context.device").rows()
    assert rows == [("b", 1.0, 0.9, 2.0, "phone"), ("a", 2.0, 0.1, 1.0, "phone")]


def test_nothing_to_learn_from_and_a_full_folder_are_refused(world, tmp_path):
    with pytest.raises(DataError, match="window"):
        world([shown("u", "r1", FAR, ["a"])], [])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    with pytest.raises(SpecError, match="empty"):
        world([shown("u", "r1", HOUR, ["a"])], [])
    with pytest.raises(SpecError, match="within_s"):
        Collecting(within_s=0)
    with pytest.raises(SpecError, match="candidate_fields"):
        Collecting(candidate_fields=("label",))


@pytest.mark.parametrize("extra", [(), ("position",)])
def test_data_prepare_reads_what_was_collected(world, tmp_path, extra):
    layout = RecordLayout(fields=(("channel", "categorical"), ("dwell", "numeric")))
    lists, events = [], []
    for n in range(40):
        user, start = f"u{n % 4}", n * 10 * HOUR
        events.append(did(user, f"i{n % 5}", start, f"h{n}", channel="web", dwell=float(n)))
        lists.append(shown(user, f"r{n}", start + HOUR, [f"i{k}" for k in range(5)]))
        events.append(did(user, f"i{n % 3}", start + 2 * HOUR, f"t{n}", channel="app"))
    with open_store(tmp_path / "store", layout) as store:
        store.put_items({f"i{k}": {"categories": ["all", f"kind{k % 2}"], "fields": {"size": k, "tags": ["x"]}}
                         for k in range(5)})  # fmt: skip
    found, _ = world(lists, events, layout=layout, candidate_fields=extra)
    assert found.taken == 40
    data = prepare(load_spec(found.spec), tmp_path / "prepared")
    features = data.features
    assert {f.name for f in features.candidate_fields} == {"price", *extra}
    assert {f.name for f in features.context_fields} == {"device"}
    assert {f.name for f in features.behaviour_fields} == {"channel", "dwell"}
    assert len(features.categories) == 2
    requests = data.requests("train")
    assert len(requests.item) == 5 * len(requests)
    assert float(requests.label.sum()) == len(requests)
