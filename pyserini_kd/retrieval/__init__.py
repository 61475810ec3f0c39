"""Build and open indexes, search, rerank, fuse."""
