"""Write whole files, keep records, lock, resume work."""
