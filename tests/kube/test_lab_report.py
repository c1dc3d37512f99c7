"""The last line of `make test-kube` counts a test once, however many of its phases failed, and no failure looks like a pass."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from tests.kube.__main__ import figures

REPORT = """
<testsuites><testsuite>
  <testcase classname="a" name="good"><properties><property name="figure:swap_seconds" value="3.5"/></properties></testcase>
  <testcase classname="a" name="bad"><failure message="no"/></testcase>
  <testcase classname="a" name="bad"><error message="nor its teardown"/></testcase>
  <testcase classname="a" name="set-up"><error message="no"/></testcase>
  <testcase classname="a" name="late"></testcase>
  <testcase classname="a" name="late"><error message="teardown"/></testcase>
  <testcase classname="b" name="good">
    <skipped message="no root"/><properties><property name="other" value="x"/></properties>
  </testcase>
</testsuite></testsuites>
"""


def test_tests_are_counted_once_and_figures_are_told() -> None:
    said = figures(ET.fromstring(REPORT).iter("testcase"))
    assert said == {"total": 5, "passed": 1, "failed": 3, "skipped": 1, "swap_seconds": 3.5}


def test_no_report_is_no_pass() -> None:
    assert figures(()) == {"total": 0, "passed": 0, "failed": 0, "skipped": 0}
