"""Training in two stages: a fresh Owl, what trains when, and batches of conversations."""

from .collator import ConversationCollator
from .fresh import build_owl
from .stages import STAGES, module_table, prepare_stage


__all__ = ["STAGES", "ConversationCollator", "build_owl", "module_table", "prepare_stage"]
