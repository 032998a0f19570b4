"""Synthetic worlds: logs whose truth is known, one planted structure each.

Every world is a log of behaviours and a log of exposures whose labels are drawn from a known probability, so the
best possible score, its AUC, and what a ranker blind to the structure can reach are all known beforehand.

Items lie in kinds (fine) and groups (coarse). A user's events pick a kind that the user likes at that moment with
probability `LOYALTY`, else any kind. A candidate is *liked* by the world's rule, or not; its label is 1 with
probability `LIKED` or `OTHER`. Decoys are candidates that a ranker blind to the structure would take for liked.
"""

from sostenuto.data.worlds.drawing import world_log
from sostenuto.data.worlds.files import make_world
from sostenuto.data.worlds.log import WorldLog, expected_auc
from sostenuto.data.worlds.prepared import world_prepared
from sostenuto.data.worlds.table import WORLDS, World

__all__ = ["WORLDS", "World", "WorldLog", "expected_auc", "make_world", "world_log", "world_prepared"]
