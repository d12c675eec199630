"""The event log: every event of a run, kept whole, chained, and proven."""

from nx46vx.events.reader import iter_events
from nx46vx.events.seal import seal_run
from nx46vx.events.writer import EventLog

__all__ = ["EventLog", "iter_events", "seal_run"]
