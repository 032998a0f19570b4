"""Knowledge about items, actions, moments and users that is given beforehand, as data: which values go together.

Every value of a prior is a group. An item (or action, or user) may be compatible with several groups; what nothing is
known of is compatible with all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sostenuto.schema.errors import SpecError, did_you_mean
from sostenuto.schema.features import FIRST_KNOWN, FeatureSpec, Field

if TYPE_CHECKING:
    from torch import Tensor

Source = Literal["none", "category", "tags", "action", "graph", "user"]
ITEM_SOURCES = ("category", "tags", "graph")  # these say of an item which groups it is in


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    """Where the groups come from.

    none      one group that holds everything
    category  values of a level of the category path
    tags      values of an item field; a multi-valued one puts an item into several groups
    action    what the user did to the target; candidates are compatible with all groups
    graph     communities of the item-item graph of the training period
    user      communities of the user-user graph of the training period
    """

    source: Source = "graph"
    name: str = ""  # of the category level or item field; "" = the coarsest level, or the first multi-valued field
    groups: int = 8  # C at most: the most frequent values. Items of no other are compatible with all
    resolution: float = 1.0  # of communities; higher gives more and smaller ones
    anchors: int = 64  # A, items drawn of each group to measure by how high a head's scores lie; see Steering.level
    scramble: Literal["no", "shuffle", "all"] = "no"  # ablation: deal groups to items at random; all items in all

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise SpecError(f"PriorConfig.groups must be at least 1, got {self.groups}; 8 is usual")
        if self.anchors < 1:
            raise SpecError(f"PriorConfig.anchors must be at least 1, got {self.anchors}; 64 is usual")
        if not self.resolution > 0:
            raise SpecError(f"PriorConfig.resolution must be above 0, got {self.resolution}; 1 is usual")


@dataclass(frozen=True, kw_only=True, slots=True)
class FutureTargets:
    """What batches of a ranker with objective `loss_along` carry; `targets` of its configuration says so."""

    moments: int  # P distinct moments that are foretold
    per_moment: int  # behaviours of one moment that are targets, at most
    prior: PriorConfig  # its tables are handed to the ranker before training

    @property
    def draws_by_group(self) -> bool:
        """The prior says of items which groups they are in, so rare groups are given negatives of their own."""
        return self.prior.source in ITEM_SOURCES


@dataclass(frozen=True, kw_only=True, slots=True)
class Priors:
    """The tables of a prior with C groups. Made of the training period alone."""

    names: tuple[str, ...]  # C, for people
    share: Tensor  # (C,) float32 of the training behaviours that are compatible with each; sums to 1
    items: Tensor  # (num_items, C) bool compatibility
    actions: Tensor  # (num_actions, C) bool compatibility
    evidence: Tensor  # (num_items, C) float32: log of how much more an item is met in a user group than in all
    size: Tensor  # (C + 1,) float32 known items of each group, and of the catalogue
    anchors: Tensor  # (C + 1, A) int64 some of them, drawn with replacement; 0 where there are none


def tag_field(config: PriorConfig, features: FeatureSpec) -> Field:
    """Return the item field of a `tags` prior."""
    known = {f.name: f for f in features.item_fields if f.kind in {"categorical", "multi"}}
    if not config.name:
        found = next((f for f in known.values() if f.kind == "multi"), None)
        if found is None:
            raise SpecError(
                "PriorConfig.name must be an item field, because no item field has several values; name one"
            )
        return found
    if config.name not in known:
        names = ", ".join(known) or "none"
        raise SpecError(
            f"PriorConfig.name must be a categorical item field ({names}), got {config.name!r}."
            f"{did_you_mean(config.name, known)}"
        )
    return known[config.name]


def category_level(config: PriorConfig, features: FeatureSpec) -> int:
    """Return the column of the category path of a `category` prior."""
    names = [level.name for level in features.categories]
    if not names:
        raise SpecError("PriorConfig.source must not be 'category', because items have no category; take graph or tags")
    if config.name and config.name not in names:
        raise SpecError(
            f"PriorConfig.name must be a category level ({', '.join(names)}), got {config.name!r}."
            f"{did_you_mean(config.name, names)}"
        )
    return names.index(config.name) if config.name else 0


def num_groups(config: PriorConfig, features: FeatureSpec) -> int:
    """Return C: what the config allows, and the data have."""
    if config.source == "none":
        return 1
    if config.source == "category":
        return max(1, min(config.groups, features.categories[category_level(config, features)].size - FIRST_KNOWN))
    if config.source == "tags":
        return max(1, min(config.groups, tag_field(config, features).size - FIRST_KNOWN))
    if config.source == "action":
        if features.num_actions <= FIRST_KNOWN:
            raise SpecError("PriorConfig.source must not be 'action', because the log has no actions; take graph")
        return min(config.groups, features.num_actions - FIRST_KNOWN)
    return config.groups


__all__ = [
    "ITEM_SOURCES",
    "FutureTargets",
    "PriorConfig",
    "Priors",
    "Source",
    "category_level",
    "num_groups",
    "tag_field",
]
