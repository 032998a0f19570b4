"""The one table of models. Command line, contract test, docs index and benchmarks read it.

A model is loaded when asked for, so listing the table imports no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

from sostenuto.schema.errors import MissingExtra, SpecError, did_you_mean
from sostenuto.schema.features import FeatureSpec
from sostenuto.schema.ranker import Ranker

# Extras by the module whose presence shows that they are installed.
EXTRA_MODULES = {"graphs": "networkx", "trees": "lightgbm"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """What the house knows about a ranker without loading it."""

    name: str
    title: str
    paper: str  # reference, or "" for a plain method
    kind: Literal["neural", "fitted", "rule"]
    objective: Literal["bce", "ranking_along", "next_item", "loss_along", "none"]  # see training/losses.py; none = rule
    state: Literal["bounded", "growing"]  # size of a user's state against the length of the history
    update: Literal["exact", "none"]  # can a later event be folded into a state exactly
    request_context: bool  # scoring reads time or place of the request
    ordered: bool = False  # the order of behaviours of one moment matters to it
    content: tuple[str, ...] = ()  # kinds of item content it reads, of CONTENT_KINDS: it has `take_content`
    needs: tuple[str, ...] = ()  # extras to install
    where: str  # module:class
    config: str  # module:class of its configuration

    @property
    def gives_probabilities(self) -> bool:
        """Its logits are learnt as those of labels; the scores of rules and of searches only order items."""
        return self.objective in {"bce", "ranking_along"}


MODELS: dict[str, ModelEntry] = {}


def _add(entry: ModelEntry) -> None:
    MODELS[entry.name] = entry


_add(
    ModelEntry(
        name="popularity",
        title="Popularity, all time",
        paper="",
        kind="rule",
        objective="none",
        state="bounded",
        update="exact",
        request_context=False,
        where="sostenuto.baselines.popularity:Popularity",
        config="sostenuto.baselines.popularity:PopularityConfig",
    )
)
_add(
    ModelEntry(
        name="popularity_recent",
        title="Popularity, last four weeks",
        paper="",
        kind="rule",
        objective="none",
        state="bounded",
        update="exact",
        request_context=False,
        where="sostenuto.baselines.popularity:RecentPopularity",
        config="sostenuto.baselines.popularity:PopularityConfig",
    )
)
_add(
    ModelEntry(
        name="repeat",
        title="Repeat count and recency, then popularity",
        paper="",
        kind="rule",
        objective="none",
        state="bounded",
        update="exact",
        request_context=False,
        where="sostenuto.baselines.repeat:Repeat",
        config="sostenuto.baselines.repeat:RepeatConfig",
    )
)
_add(
    ModelEntry(
        name="logistic",
        title="Logistic regression on hand-made features",
        paper="",
        kind="fitted",
        objective="bce",
        state="bounded",
        update="exact",
        request_context=True,
        where="sostenuto.baselines.logistic:Logistic",
        config="sostenuto.baselines.logistic:LogisticConfig",
    )
)
_add(
    ModelEntry(
        name="trees",
        title="Gradient-boosted trees on hand-made features",
        paper="Ke et al., NeurIPS 2017 (LightGBM)",
        kind="fitted",
        objective="bce",
        state="bounded",
        update="exact",
        request_context=True,
        needs=("trees",),
        where="sostenuto.baselines.trees:Trees",
        config="sostenuto.baselines.trees:TreesConfig",
    )
)
_add(
    ModelEntry(
        name="mean_pool",
        title="Mean-pooled history network",
        paper="Zhou et al., KDD 2018, arXiv:1706.06978, section 4.2",
        kind="neural",
        objective="bce",
        state="bounded",
        update="exact",
        request_context=True,
        where="sostenuto.baselines.mean_pool:MeanPool",
        config="sostenuto.baselines.mean_pool:MeanPoolConfig",
    )
)

_add(
    ModelEntry(
        name="din",
        title="Deep Interest Network",
        paper="Zhou et al., KDD 2018, arXiv:1706.06978",
        kind="neural",
        objective="bce",
        state="growing",
        update="exact",
        request_context=True,
        where="sostenuto.models.din:DIN",
        config="sostenuto.models.din:DINConfig",
    )
)
_add(
    ModelEntry(
        name="dien",
        title="Deep Interest Evolution Network",
        paper="Zhou et al., AAAI 2019, arXiv:1809.03672",
        kind="neural",
        objective="bce",
        state="growing",
        update="exact",
        request_context=True,
        ordered=True,
        where="sostenuto.models.dien:DIEN",
        config="sostenuto.models.dien:DIENConfig",
    )
)
_add(
    ModelEntry(
        name="sdim",
        title="Sampling-based Deep Interest Modelling",
        paper="Cao et al., CIKM 2022, arXiv:2205.10249",
        kind="neural",
        objective="bce",
        state="bounded",
        update="exact",
        request_context=True,
        where="sostenuto.models.sdim:SDIM",
        config="sostenuto.models.sdim:SDIMConfig",
    )
)
_add(
    ModelEntry(
        name="sim_hard",
        title="Search-based interest, hard search by category (SIM)",
        paper="Pi et al., CIKM 2020, arXiv:2006.05639",
        kind="neural",
        objective="bce",
        state="growing",
        update="exact",
        request_context=True,
        where="sostenuto.models.sim_hard:SIMHard",
        config="sostenuto.models.sim_hard:SIMHardConfig",
    )
)
_add(
    ModelEntry(
        name="sim_soft",
        title="Search-based interest, soft search by learned product (SIM)",
        paper="Pi et al., CIKM 2020, arXiv:2006.05639",
        kind="neural",
        objective="bce",
        state="growing",
        update="exact",
        request_context=True,
        where="sostenuto.models.sim_soft:SIMSoft",
        config="sostenuto.models.sim_soft:SIMSoftConfig",
    )
)
_add(
    ModelEntry(
        name="eta",
        title="End-to-end target attention by signatures (ETA)",
        paper="Chen et al. 2021, arXiv:2108.04468",
        kind="neural",
        objective="bce",
        state="growing",
        update="exact",
        request_context=True,
        where="sostenuto.models.eta:ETA",
        config="sostenuto.models.eta:ETAConfig",
    )
)
_add(
    ModelEntry(
        name="twin",
        title="Two-stage interest network (TWIN)",
        paper="Chang et al., KDD 2023, arXiv:2302.02352",
        kind="neural",
        objective="bce",
        state="growing",
        update="exact",
        request_context=True,
        where="sostenuto.models.twin:TWIN",
        config="sostenuto.models.twin:TWINConfig",
    )
)
_add(
    ModelEntry(
        name="dare",
        title="Decoupled attention and representation embeddings (DARE)",
        paper="ICLR 2025, arXiv:2410.02604",
        kind="neural",
        objective="bce",
        state="growing",
        update="exact",
        request_context=True,
        where="sostenuto.models.dare:DARE",
        config="sostenuto.models.dare:DAREConfig",
    )
)
_add(
    ModelEntry(
        name="muse",
        title="Multimodal search over lifelong histories (MUSE)",
        paper="arXiv:2512.07216",
        kind="neural",
        objective="bce",
        state="growing",
        update="exact",
        request_context=True,
        content=("vectors",),
        where="sostenuto.models.muse:MUSE",
        config="sostenuto.models.muse:MUSEConfig",
    )
)
_add(
    ModelEntry(
        name="sasrec",
        title="Self-attentive sequential recommendation, sampled softmax",
        paper="Kang and McAuley, ICDM 2018, arXiv:1808.09781",
        kind="neural",
        objective="next_item",
        state="bounded",
        update="exact",
        request_context=False,
        where="sostenuto.models.sasrec:SASRec",
        config="sostenuto.models.sasrec:SASRecConfig",
    )
)
_add(
    ModelEntry(
        name="sfgr",
        title="Single-flow generative ranking",
        paper="arXiv:2505.16752; blocks of Zhai et al., arXiv:2402.17152",
        kind="neural",
        objective="bce",
        state="growing",
        update="exact",
        request_context=True,
        where="sostenuto.models.sfgr:SFGR",
        config="sostenuto.layers.flow_config:FlowConfig",
    )
)
_add(
    ModelEntry(
        name="sfgr_published",
        title="Single-flow generative ranking, published time bias",
        paper="Zhai et al., arXiv:2402.17152, released code",
        kind="neural",
        objective="bce",
        state="growing",
        update="none",
        request_context=True,
        where="sostenuto.models.sfgr_published:PublishedSFGR",
        config="sostenuto.layers.flow_config:FlowConfig",
    )
)
_add(
    ModelEntry(
        name="metagr",
        title="HSTU ranking, items and actions in turn",
        paper="Zhai et al., arXiv:2402.17152",
        kind="neural",
        objective="ranking_along",
        state="growing",
        update="exact",
        request_context=True,
        where="sostenuto.models.metagr:MetaGR",
        config="sostenuto.layers.flow_config:FlowConfig",
    )
)
_add(
    ModelEntry(
        name="dfgr",
        title="Dual-flow generative ranking",
        paper="arXiv:2505.16752",
        kind="neural",
        objective="ranking_along",
        state="growing",
        update="exact",
        request_context=True,
        where="sostenuto.models.dfgr:DFGR",
        config="sostenuto.layers.flow_config:FlowConfig",
    )
)
_add(
    ModelEntry(
        name="hstu",
        title="Hierarchical sequential transduction units, retrieval",
        paper="Zhai et al., ICML 2024, arXiv:2402.17152",
        kind="neural",
        objective="next_item",
        state="bounded",
        update="exact",
        request_context=False,
        where="sostenuto.models.hstu:HSTU",
        config="sostenuto.models.hstu:HSTUConfig",
    )
)
_add(
    ModelEntry(
        name="stim",
        title="Spatio-temporal periodic interests with forgetting",
        paper="Meituan 2025, arXiv:2508.02451; our realisation of the abstract",
        kind="neural",
        objective="bce",
        state="growing",
        update="exact",
        request_context=True,
        where="sostenuto.models.stim:STIM",
        config="sostenuto.models.stim:STIMConfig",
    )
)
_add(
    ModelEntry(
        name="prior_heads",
        title="Human-prior heads on a sequence backbone",
        paper="Meta AI, WWW 2026, arXiv:2511.10492",
        kind="neural",
        objective="loss_along",
        state="bounded",
        update="exact",
        request_context=False,
        where="sostenuto.models.prior_heads:PriorHeads",
        config="sostenuto.models.prior_heads:PriorHeadsConfig",
    )
)

_add(
    ModelEntry(
        name="em3",
        title="End-to-end multimodal encoders and ranker (EM3)",
        paper="arXiv:2404.06078",
        kind="neural",
        objective="bce",
        state="growing",
        update="exact",
        request_context=True,
        content=("vectors", "tokens", "states"),
        where="sostenuto.models.em3:EM3",
        config="sostenuto.models.em3:EM3Config",
    )
)


def entry_of(name: str) -> ModelEntry:
    """Return the row of a model, or say which names there are."""
    if name not in MODELS:
        raise SpecError(f"model must be one of {', '.join(MODELS)}, got {name!r}.{did_you_mean(name, MODELS)}")
    return MODELS[name]


def missing_extras(entry: ModelEntry) -> tuple[str, ...]:
    """Return the extras of a model that are not installed here."""
    return tuple(e for e in entry.needs if importlib.util.find_spec(EXTRA_MODULES.get(e, e)) is None)


def _load(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def load_class(entry: ModelEntry) -> type[Any]:
    """Import and return the class of a model."""
    if missing := missing_extras(entry):
        raise MissingExtra(
            f"model {entry.name!r} needs the extra {missing[0]!r}, which is not installed; "
            f"run `pip install 'sostenuto[{','.join(missing)}]'`"
        )
    return _load(entry.where)  # type: ignore[no-any-return]


def config_class(name: str) -> type[Any]:
    """Import and return the configuration class of a model."""
    return _load(entry_of(name).config)  # type: ignore[no-any-return]


def default_config(name: str) -> Any:
    """Return a model's configuration with its default values."""
    return config_class(name)()


def build(name: str, config: Any, features: FeatureSpec, *, seed: int = 0) -> Ranker:
    """Make a ranker with fresh parameters drawn from `seed`; torch's global generator is left as it was."""
    entry = entry_of(name)
    cls = load_class(entry)
    if entry.kind != "neural":
        return cls(config, features)  # type: ignore[no-any-return]
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(config, features)  # type: ignore[no-any-return]


__all__ = [
    "MODELS",
    "ModelEntry",
    "build",
    "config_class",
    "default_config",
    "entry_of",
    "load_class",
    "missing_extras",
]
