"""What a server counts, as Prometheus reads it. Labels have few values: routes, statuses, stages, versions; never ids.

With several worker processes every one keeps its numbers in files of a folder that all share (PROMETHEUS_MULTIPROC_DIR,
which `server.serve` sets), and whichever is asked adds them up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from sostenuto.serving.service import Reading, Served

PREFIX = "sostenuto_"
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0)
AGES_S = (60, 600, 3_600, 21_600, 86_400, 604_800, 2_592_000, 31_536_000)
COUNTS = (1, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
MOST_READINGS = 1_000  # distinct names and labels of readings: a service that goes wild must not fill the memory


class Metrics:
    """The numbers of one process."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._gauge = Gauge
        self.registry = CollectorRegistry()
        self._across = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if not self._across:
            from prometheus_client import GCCollector, PlatformCollector, ProcessCollector

            for collector in (ProcessCollector, PlatformCollector, GCCollector):
                collector(registry=self.registry)
        here = self.registry
        self.requests = Counter(PREFIX + "requests", "Requests answered", ("route", "status"), registry=here)
        self.seconds = Histogram(
            PREFIX + "request_seconds",
            "From the end of the headers to the answer",
            ("route",),
            buckets=SECONDS,
            registry=here,
        )
        self.stages = Histogram(
            PREFIX + "stage_seconds", "Parts of a request", ("route", "stage"), buckets=SECONDS, registry=here
        )
        self.refused = Counter(PREFIX + "refused", "Requests refused, by reason", ("route", "reason"), registry=here)
        self.under_way = Gauge(
            PREFIX + "under_way", "Requests under way", ("lane",), multiprocess_mode="livesum", registry=here
        )
        self.events = Counter(PREFIX + "events", "Events taken, by what became of them", ("outcome",), registry=here)
        self.rankings = Counter(
            PREFIX + "rankings",
            "Rankings by version, arm and origin of the user state: cached and folded are hits, cold has no history",
            ("version", "arm", "state"),
            registry=here,
        )
        self.candidates = Histogram(
            PREFIX + "candidates", "Candidates of a ranking", (), buckets=COUNTS[:7], registry=here
        )
        self.unknown = Counter(
            PREFIX + "unknown_candidates", "Candidates that the model does not know", (), registry=here
        )
        self.lengths = Histogram(
            PREFIX + "history_length", "Behaviours that the model saw", (), buckets=(0, *COUNTS), registry=here
        )
        self.ages = Histogram(
            PREFIX + "history_age_seconds",
            "From the newest behaviour to the request",
            (),
            buckets=AGES_S,
            registry=here,
        )
        self.served_lists = Gauge(
            PREFIX + "served_lists", "Lists logged since the start", (), multiprocess_mode="sum", registry=here
        )
        self.served_lost = Gauge(
            PREFIX + "served_lists_lost", "Lists that could not be logged", (), multiprocess_mode="sum", registry=here
        )
        self._readings: dict[str, Any] = {}
        self._children: dict[tuple[str, ...], Any] = {}
        self._num_readings: set[tuple[str, ...]] = set()

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        key = (route, str(status))
        counter = self._children.get(key)
        if counter is None:
            counter = self._children[key] = (self.requests.labels(*key), self.seconds.labels(route))
        counter[0].inc()
        counter[1].observe(seconds)

    def stage(self, route: str, stage: str, seconds: float) -> None:
        """Note how long a part took."""
        key = ("stage", route, stage)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self.stages.labels(route, stage)
        child.observe(seconds)

    def ranked(self, served: Served, num_candidates: int, time_ms: int) -> None:
        """Count one ranking and what it was made from."""
        key = ("ranked", served.version, served.arm, served.state)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self.rankings.labels(*key[1:])
        child.inc()
        self.candidates.observe(num_candidates)
        if served.unknown_candidates:
            self.unknown.inc(served.unknown_candidates)
        self.lengths.observe(served.history_length)
        if served.newest_ms is not None:
            self.ages.observe(max(0.0, (time_ms - served.newest_ms) / 1000))

    def take(self, readings: Iterable[Reading]) -> None:
        """Set gauges from what the service says of itself."""
        for reading in readings:
            names = tuple(sorted(reading.labels))
            values = (reading.name, *(reading.labels[name] for name in names))
            if values not in self._num_readings:
                if len(self._num_readings) >= MOST_READINGS:
                    continue
                self._num_readings.add(values)
            gauge = self._readings.get(reading.name)
            if gauge is None:
                mode: Literal["livesum", "livemax"] = "livesum" if reading.merge == "sum" else "livemax"
                gauge = self._readings[reading.name] = self._gauge(
                    PREFIX + reading.name, reading.help, names, registry=self.registry, multiprocess_mode=mode
                )
            (gauge.labels(*values[1:]) if names else gauge).set(reading.value)

    def text(self) -> bytes:
        """Return everything, of all worker processes."""
        from prometheus_client import CollectorRegistry, generate_latest

        if not self._across:
            return bytes(generate_latest(self.registry))
        from prometheus_client.multiprocess import MultiProcessCollector

        _forget_the_dead(Path(self._across))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return bytes(generate_latest(registry))


def _forget_the_dead(folder: Path) -> None:
    """Take away the gauges of worker processes that ended: they would stay at their last value."""
    from prometheus_client.multiprocess import mark_process_dead

    for path in folder.glob("gauge_live*.db"):
        number = int(path.stem.rpartition("_")[2])
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            mark_process_dead(number, str(folder))  # type: ignore[no-untyped-call]
        except PermissionError:  # somebody else's by now: the number came round
            continue


__all__ = ["MEDIA_TYPE", "PREFIX", "Metrics"]
