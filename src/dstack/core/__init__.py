"""The vocabulary: specs, statuses, reasons, ranges, errors. No I/O, no clock, no chance.

Imports pydantic only. Start reading at `configurations` and `runs`.
"""
