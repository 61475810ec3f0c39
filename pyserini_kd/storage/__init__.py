"""Atomic files, records, locks and resumable jobs."""
