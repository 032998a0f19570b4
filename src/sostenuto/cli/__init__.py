"""Thin verbs over the rooms. Importing them loads no data library and no torch, so `--help` is quick."""
