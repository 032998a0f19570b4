"""From a finished run to rankings: today offline, for one user at one moment."""
