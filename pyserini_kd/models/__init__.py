"""Load a ranker and run it."""
