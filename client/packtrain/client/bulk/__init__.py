"""Bulk: a file of rows in, a file of answers out; whatever is killed on the way, each row is answered once.

rows.py       a line as a row, or what is wrong with it           (pure)
sources.py    files, .gz, stdin, tables as lines
translate.py  a row as jobs, results as its line in the output    (pure)
intake.py     the first reading: all is checked before any runs
ledger.py     where each row stands, on disk
output.py     files that lines are added to, and cut after a crash
window.py     how many jobs, of which models                      (pure)
gate.py       limits of whom it runs for
feeder.py     the loop between ledger, fleet and output: opening.py, in_flight.py, flights.py, settling.py, ends.py
progress.py   how far, how fast, how long                         (pure)
options.py    what is asked for, and what it came to
run.py        all of it together
"""

from packtrain.client.bulk.intake import FileInvalid
from packtrain.client.bulk.options import BulkOptions, Summary
from packtrain.client.bulk.progress import Forecast, Snapshot
from packtrain.client.bulk.rows import Defaults, Fault
from packtrain.client.bulk.run import BulkRun

__all__ = ["BulkOptions", "BulkRun", "Defaults", "Fault", "FileInvalid", "Forecast", "Snapshot", "Summary"]
