"""What lies on disk of a run, and what it takes from the process: signals, generators, a lock."""
