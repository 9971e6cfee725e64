"""How one request limits speculation."""

from pydantic import Field

from slipstream.config.processes import ServerConfig
from slipstream.errors import RequestError
from slipstream.server.limits import MaxDraftTokens
from slipstream.server.schemas.base import Schema


class Speculation(Schema):
    """Fields of a request's body, on every route that generates. They limit what the server would do."""

    speculative: bool | None = None
    max_draft_tokens: MaxDraftTokens | None = Field(
        None,
        description="at most so many drafts in one step, with trees all branches together; 0 is speculative: false",
    )

    def draft_limit(self, config: ServerConfig) -> int | None:
        """SamplingParams.max_draft_tokens. Raises RequestError for what contradicts itself or asks for too much."""
        if self.speculative and config.speculative_algorithm is None:
            raise RequestError(
                "speculative is true, but this server runs without speculation; leave it out, or start the server "
                "with a draft (--speculative-draft-model-path) or with --speculative-algorithm NGRAM",
                param="speculative",
            )
        limit = self.max_draft_tokens
        if self.speculative is not None and limit is not None and self.speculative != (limit > 0):
            said = str(self.speculative).lower()
            raise RequestError(
                f"speculative is {said}, but max_draft_tokens is {limit}; leave one of them out",
                param="max_draft_tokens",
            )
        return 0 if self.speculative is False else limit
