"""Whatever is said to the supervisor's core, in whatever order: it decides, gives its reason, and keeps its promises."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.unit.core.supervisor.chaos import Chaos

pytestmark = pytest.mark.slow

TestAnythingMayBeSaid = Chaos.TestCase
TestAnythingMayBeSaid.settings = settings(max_examples=100, stateful_step_count=60)
