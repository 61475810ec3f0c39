"""Turn runs and judgements into numbers that can be defended."""
