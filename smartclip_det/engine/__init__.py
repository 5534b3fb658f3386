"""MMEngine hooks, optimizer wrappers and strategies."""

from smartclip_det.engine.checkpoint_hook import TrainableCheckpointHook
from smartclip_det.engine.finite_guard import FiniteGuardHook
from smartclip_det.engine.optim import BFloat16OptimWrapper
from smartclip_det.engine.resuming import ResumeHook
from smartclip_det.engine.sharding import ShardedStrategy
from smartclip_det.engine.vocabulary_hook import VocabularyHook

__all__ = [
    "BFloat16OptimWrapper",
    "FiniteGuardHook",
    "ResumeHook",
    "ShardedStrategy",
    "TrainableCheckpointHook",
    "VocabularyHook",
]
