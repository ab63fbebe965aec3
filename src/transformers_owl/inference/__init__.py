"""Beyond one `generate`: chats, scores of given answers, features of images, attention to them, faster CPUs."""

from .assistant import text_assistant
from .attention import PictureAttention, draw_attention, picture_attention
from .chat import Chat
from .compiled_pictures import compile_pictures
from .features import VisualFeatures, extract_features
from .onednn import use_onednn
from .scoring import AnswerScore, score_answers


__all__ = [
    "AnswerScore",
    "Chat",
    "PictureAttention",
    "VisualFeatures",
    "compile_pictures",
    "draw_attention",
    "extract_features",
    "picture_attention",
    "score_answers",
    "text_assistant",
    "use_onednn",
]
