"""Layouts, memory ledger, schedules, step time, search."""
