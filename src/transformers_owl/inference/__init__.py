"""Beyond one `generate`: chats, scores of given answers, image features, attention maps, fast paths."""

from .assistant import text_assistant
from .attention import ImageAttention, draw_attention, image_attention, video_attention
from .chat import Chat
from .compiled_vision import compile_vision
from .features import VisualFeatures, extract_features
from .onednn import use_onednn
from .optimizing import optimize
from .scoring import AnswerScore, score_answers


__all__ = [
    "AnswerScore",
    "Chat",
    "ImageAttention",
    "VisualFeatures",
    "compile_vision",
    "draw_attention",
    "extract_features",
    "image_attention",
    "optimize",
    "score_answers",
    "text_assistant",
    "use_onednn",
    "video_attention",
]
