"""The strategies by name. One file each; a new one is a file and an entry here."""

from motet.composers.strategies.adapters import Adapters
from motet.composers.strategies.adaptive_temperature import AdaptiveTemperature
from motet.composers.strategies.budget import Budget
from motet.composers.strategies.cascade import Cascade
from motet.composers.strategies.causal import Causal
from motet.composers.strategies.context_aware import ContextAware
from motet.composers.strategies.contrastive import Contrastive
from motet.composers.strategies.discriminator import Discriminator
from motet.composers.strategies.divergence import Divergence
from motet.composers.strategies.dynamic import Dynamic
from motet.composers.strategies.eft import Eft
from motet.composers.strategies.experts import Experts
from motet.composers.strategies.generic import Generic
from motet.composers.strategies.guidance import Guidance
from motet.composers.strategies.hesitation import Hesitation
from motet.composers.strategies.layer_contrast import LayerContrast
from motet.composers.strategies.mixture import Mixture
from motet.composers.strategies.novelty import Novelty
from motet.composers.strategies.product import Product
from motet.composers.strategies.proxy_tuning import ProxyTuning
from motet.composers.strategies.routed import Routed
from motet.composers.strategies.rules import RuleAdapter
from motet.composers.strategies.sparse import Sparse
from motet.composers.strategies.strategy import Strategy
from motet.composers.strategies.unlearn import Unlearn

STRATEGIES: dict[str, type[Strategy]] = {
    "proxy_tuning": ProxyTuning,
    "eft": Eft,
    "contrastive": Contrastive,
    "layer_contrast": LayerContrast,
    "novelty": Novelty,
    "unlearn": Unlearn,
    "divergence": Divergence,
    "context_aware": ContextAware,
    "hesitation": Hesitation,
    "guidance": Guidance,
    "experts": Experts,
    "product": Product,
    "rules": RuleAdapter,
    "mixture": Mixture,
    "sparse": Sparse,
    "generic": Generic,
    "causal": Causal,
    "cascade": Cascade,
    "discriminator": Discriminator,
    "dynamic": Dynamic,
    "budget": Budget,
    "routed": Routed,
    "adaptive_temperature": AdaptiveTemperature,
    "adapters": Adapters,
}
