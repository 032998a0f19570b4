"""Everything between "recommend something to this user" and the ranker, and from its scores to a list."""
