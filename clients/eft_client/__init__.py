"""Programs that use an EFT server or its checkpoints; nothing here imports the server.

``EftClient`` asks a server, ``AsyncEftClient`` does so in an event loop; ``eft_body`` is for OpenAI's own client.
"""

from eft_client.bodies import UNSET, ScoreItem, eft_body
from eft_client.client import AsyncEftClient
from eft_client.errors import (
    BadAnswer,
    BadRequest,
    Busy,
    ConnectionFailed,
    EftError,
    NotFound,
    ServerAnswered,
    ServerFailed,
    TimedOut,
    TooLarge,
    Unauthorised,
    WrongArgument,
)
from eft_client.results import (
    Behaviours,
    ChatResult,
    Choice,
    Expert,
    MemberScores,
    ModelCard,
    Piece,
    Reward,
    ScoredItem,
    ScoreResult,
    TextResult,
    Usage,
)
from eft_client.sync import EftClient

__all__ = [
    "UNSET",
    "AsyncEftClient",
    "BadAnswer",
    "BadRequest",
    "Behaviours",
    "Busy",
    "ChatResult",
    "Choice",
    "ConnectionFailed",
    "EftClient",
    "EftError",
    "Expert",
    "MemberScores",
    "ModelCard",
    "NotFound",
    "Piece",
    "Reward",
    "ScoreItem",
    "ScoreResult",
    "ScoredItem",
    "ServerAnswered",
    "ServerFailed",
    "TextResult",
    "TimedOut",
    "TooLarge",
    "Unauthorised",
    "Usage",
    "WrongArgument",
    "eft_body",
]
