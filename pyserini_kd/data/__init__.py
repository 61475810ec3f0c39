"""Typed topics, documents, judgements and runs, from any source."""
