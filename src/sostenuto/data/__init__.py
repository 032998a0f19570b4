"""Raw logs in, point-in-time histories and requests out."""
