"""The HTTP edge of a ranking service: bytes, keys, limits and logs. It knows no model and no store."""
