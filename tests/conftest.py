"""Settings that every test shares.

Property tests have no deadline, because this suite asserts what is computed and never how fast, and the machines that
run it are busy. In CI they draw the same examples each time, so that a red run means a change and not luck; elsewhere
they explore. A failing example prints the line that replays it.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow], max_examples=100
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")
