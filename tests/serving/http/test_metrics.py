"""Gauges of worker processes that ended do not stay behind at their last value."""

import os
import subprocess
import sys

from tests.serving.server_process import ROOT

NOTE = """
from sostenuto.serving.http.metrics import Metrics
from sostenuto.serving.service import Reading
metrics = Metrics()
metrics.under_way.labels("score").set(5)
metrics.take([Reading(name="store_gone", help="", value=1.0)])
metrics.requests.labels("rank", "200").inc()
print(metrics.text().decode())
"""
ASK = """
from sostenuto.serving.http.metrics import Metrics
print(Metrics().text().decode())
"""


def told(script: str, folder) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src", "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_worker_that_ended_leaves_its_counts_and_takes_its_gauges_with_it(tmp_path):
    alive = told(NOTE, tmp_path)
    assert 'sostenuto_under_way{lane="score"} 5.0' in alive
    assert "sostenuto_store_gone 1.0" in alive
    after = told(ASK, tmp_path)
    assert 'sostenuto_requests_total{route="rank",status="200"} 1.0' in after
    assert "sostenuto_under_way" not in after
    assert "sostenuto_store_gone" not in after
