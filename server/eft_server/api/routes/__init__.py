"""The endpoints, one module per noun."""

from eft_server.api.routes import (
    chat,
    completions,
    explanations,
    models,
    operations,
    playground,
    responses,
    scores,
    tokens,
)

__all__ = ["routers"]

routers = (
    chat.router,
    completions.router,
    responses.router,
    scores.router,
    explanations.router,
    models.router,
    tokens.router,
    operations.router,
    playground.router,
)
"""Every endpoint of the application."""
