"""The event log: every event of a run, kept whole, chained, and proven."""

from nx46vx.events.follow import follow_events
from nx46vx.events.reader import iter_events
from nx46vx.events.seal import seal_run
from nx46vx.events.table import export_parquet, read_table
from nx46vx.events.verify import Problem, checking_processes, verify_checkpoints_sealed, verify_log
from nx46vx.events.writer import EventLog

__all__ = [
    "EventLog",
    "Problem",
    "checking_processes",
    "export_parquet",
    "follow_events",
    "iter_events",
    "read_table",
    "seal_run",
    "verify_checkpoints_sealed",
    "verify_log",
]
