"""POST /v1/completions."""

from typing import Annotated, Any

from pydantic import WithJsonSchema

from slipstream.config.processes import ServerConfig
from slipstream.errors import RequestError
from slipstream.messages.to_tokenizer import TextPrompt, TokenPrompt
from slipstream.server.limits import Choices, TopLogprobs
from slipstream.server.schemas.openai import OpenAIRequest
from slipstream.server.schemas.prompts import PROMPT_SCHEMA, any_prompts

DEFAULT_MAX_TOKENS = 16  # OpenAI's default on this route


class CompletionRequest(OpenAIRequest):
    """Prompts to continue as they stand. max_tokens may be 0, which with echo and logprobs scores the prompt."""

    prompt: Annotated[Any, WithJsonSchema(PROMPT_SCHEMA)]
    echo: bool = False
    logprobs: TopLogprobs | None = None
    best_of: Choices | None = None

    def check(self, config: ServerConfig) -> None:
        super().check(config)
        if self.best_of is not None and self.best_of != self.n:
            raise RequestError(
                f"best_of is {self.best_of}, which is not supported yet unless it equals n ({self.n})",
                param="best_of",
                code="unsupported_parameter",
            )

    def prompts(self, config: ServerConfig) -> list[TextPrompt | TokenPrompt]:
        """The prompts, checked; raises RequestError."""
        return any_prompts(self.prompt, config.vocab_size, "prompt")
