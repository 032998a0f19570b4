"""Settings of the whole test run. One thread: small tensors, and several workers share the machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

# no deadline: a first call may compile or import, and workers share cores; derandomised: a failure must repeat
settings.register_profile(
    "sostenuto", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("sostenuto")
