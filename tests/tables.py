"""Tables that tests make, below the dots: what their workers print is not seen."""

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
  """Prints what tests have put in record_property('table', ...)."""
  for outcome in ('passed', 'failed'):
    for report in terminalreporter.getreports(outcome):
      for name, value in getattr(report, 'user_properties', ()):
        if name == 'table':
          terminalreporter.write_line(value)
