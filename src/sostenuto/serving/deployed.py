"""A model version as it runs: what ranks, the states of its users, and what keeps both up to date."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sostenuto.serving.backlog import Backlog
from sostenuto.serving.encoding import BehaviourEncoder
from sostenuto.serving.live_explaining import LiveExplainer
from sostenuto.serving.live_model import LiveModel
from sostenuto.serving.recommending.recommender import Recommender
from sostenuto.serving.scoring import Scorer
from sostenuto.serving.user_states import CACHE_BYTES, UserStates

if TYPE_CHECKING:
    from sostenuto.serving.bundle import Bundle
    from sostenuto.serving.popularity import Followed, StorePopularity
    from sostenuto.serving.recommending.recommender import RecommendSettings
    from sostenuto.serving.stores.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """One bundle over one store."""

    model: LiveModel
    states: UserStates
    scorer: Scorer
    encoder: BehaviourEncoder
    backlog: Backlog  # of the encoder, wherever it runs
    recommender: Recommender
    explainer: LiveExplainer

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        store: Store,
        *,
        popularity: StorePopularity | None = None,
        cache_bytes: int = CACHE_BYTES,
        recommend: RecommendSettings | None = None,
        salt: bytes | None = None,
    ) -> Deployed:
        """Put the parts together.

        Args:
            bundle:      what ranks.
            store:       what users did.
            popularity:  of the store, where several models share it.
            cache_bytes: of states in memory.
            recommend:   how lists are made.
            salt:        what exploring draws follow from, the same in all processes of a server.
        """
        model = LiveModel(bundle, store, popularity)
        states = UserStates(model, cache_bytes=cache_bytes)
        scorer = Scorer(model, states)
        encoder = BehaviourEncoder(states)
        return cls(
            model=model,
            states=states,
            scorer=scorer,
            encoder=encoder,
            backlog=Backlog(store, encoder.name),
            recommender=Recommender.of(scorer, recommend, salt=salt),
            explainer=LiveExplainer(scorer),
        )

    @property
    def version(self) -> str:
        """Of the bundle."""
        return self.model.bundle.version

    def forget(self, followed: Followed) -> None:
        """Let go of what is in memory of users of whom a look at the stream has told that they were deleted."""
        for cache in (self.states.cache, self.recommender.pasts.cache):
            if followed.anew:
                cache.clear()
            elif followed.gone:
                cache.forget_codes(followed.gone)


__all__ = ["Deployed"]
