"""What a provider says of its models in a list of its own: which there are, and what it tells of each.

Plain values, made to be sent from the control half, which asks (control/model_watch.py), to the workers, which answer
`/v1/models` from them (model_list.py). What a provider does not tell is absent: nothing is guessed from a name.
"""

from __future__ import annotations

import msgspec

MOST_MODELS = 5000
"""Of one provider; the largest lists known have a few hundred."""


class ListedModel(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model under the name its provider gives it.

    `capabilities` holds true and false for what the provider says it can and cannot: `chat`, `tools`, `vision`,
    `audio_input`, `audio_output`, `image_output`, `reasoning`, `structured_outputs`, `embeddings`.
    """

    id: str
    created: int | None = None
    """Unix seconds."""
    context_window: int | None = None
    """Tokens."""
    capabilities: dict[str, bool] = {}


class Listing(msgspec.Struct, frozen=True):
    """All that one provider lists. `base_url` says of which: a reload may give its name to another."""

    provider: str
    base_url: str
    models: tuple[ListedModel, ...]
