"""The compiled twins: C++ sources, the library built from them, and how it is found. Only `ops` calls it."""
