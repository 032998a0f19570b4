"""Words of the domain. Types only: nothing here reads a file, picks a device or imports torch."""
