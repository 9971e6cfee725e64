"""Fields that both OpenAI routes share."""

from slipstream.config.processes import ServerConfig
from slipstream.errors import RequestError
from slipstream.messages.sampling import SamplingParams
from slipstream.server.limits import Choices, MaxTokens, MinTokens, Name, Seed, Temperature
from slipstream.server.schemas.base import Schema
from slipstream.server.schemas.sampling import SharedSampling, sampling_params
from slipstream.server.schemas.speculation import Speculation


class StreamOptions(Schema):
    """Options of a streamed answer."""

    include_usage: bool = False  # one more chunk, without choices, with the token counts
    continuous_usage_stats: bool = False  # the counts so far in every chunk
    include_obfuscation: bool = False


class OpenAIRequest(SharedSampling, Speculation):
    """Base of a chat and of a completion request. A request without `model` means the model that is served."""

    model: Name | None = None
    n: Choices = 1
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None  # wins over max_tokens, its old name
    min_tokens: MinTokens = 0
    temperature: Temperature = 1.0
    seed: Seed | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    def ceiling(self, default: int | None) -> int | None:
        """Most new tokens, as the request says it or else `default`."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens if self.max_tokens is not None else default

    def check(self, config: ServerConfig) -> None:
        """Rules between fields; raises RequestError."""
        check_model(self.model, config)
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream: true", param="stream_options")
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            raise RequestError(
                "stream_options.include_obfuscation is not supported yet: chunks are not padded",
                param="stream_options.include_obfuscation",
                code="unsupported_parameter",
            )

    def sampling(
        self,
        config: ServerConfig,
        *,
        seed: int,
        default_tokens: int | None,
        top_logprobs: int | None,
        prompt_logprobs_from: int | None = None,
    ) -> SamplingParams:
        """What the runtime is told; `seed` counts when the request brings none."""
        return sampling_params(
            self,
            config,
            temperature=self.temperature,
            max_new_tokens=self.ceiling(default_tokens),
            min_new_tokens=self.min_tokens,
            seed=self.seed if self.seed is not None else seed,
            top_logprobs=top_logprobs,
            prompt_logprobs_from=prompt_logprobs_from,
            max_draft_tokens=self.draft_limit(config),
        )


def check_model(model: str | None, config: ServerConfig) -> None:
    """Raise 404 for a model that is not served here."""
    if model is not None and model != config.served_model_name:
        raise RequestError(
            f"the model {model!r} does not exist; this server has {config.served_model_name!r}",
            status=404,
            param="model",
            code="model_not_found",
        )
