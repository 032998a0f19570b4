"""From prepared arrays to batches: views of a history, match index, popularity, clock, collation, loading."""
