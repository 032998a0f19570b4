"""Modules with parameters, one idea per file."""
