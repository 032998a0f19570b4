"""Named speed measurements: each is a ratio against a plain twin, taken in turns in the same process."""
