"""Stores of a running service: one promise (`store.py`), kept by LMDB and by Redis."""
