"""Vectors of items from texts, images, the log, or the user: made, stored, handed to rankers."""
