"""Beyond one `generate`: chats that continue from their cache, scores of given answers, features of pictures."""

from .assistant import text_assistant
from .chat import Chat
from .features import VisualFeatures, extract_features
from .scoring import AnswerScore, score_answers


__all__ = ["AnswerScore", "Chat", "VisualFeatures", "extract_features", "score_answers", "text_assistant"]
