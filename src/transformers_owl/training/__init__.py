"""Training in two stages: a fresh Owl, data in many formats, the trained parts of each stage, and the Trainer."""

from ..fresh import build_owl
from .collator import ConversationCollator
from .for_trl import DPOCollator, SFTCollator
from .mixture import Mixture
from .seq2seq import OwlSeq2SeqTrainer
from .sources import BadSampleError, Rows, Shards
from .stages import STAGES, module_table, prepare_stage
from .trainer import OwlTrainer


__all__ = [
    "STAGES",
    "BadSampleError",
    "ConversationCollator",
    "DPOCollator",
    "Mixture",
    "OwlSeq2SeqTrainer",
    "OwlTrainer",
    "Rows",
    "SFTCollator",
    "Shards",
    "build_owl",
    "module_table",
    "prepare_stage",
]
