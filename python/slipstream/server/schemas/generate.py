"""POST /generate, in SGLang's form."""

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from slipstream.config.processes import ServerConfig
from slipstream.errors import RequestError
from slipstream.messages.sampling import SamplingParams
from slipstream.messages.to_tokenizer import TextPrompt, TokenPrompt
from slipstream.server.error_body import shown
from slipstream.server.limits import (
    REQUEST_ID,
    Choices,
    MaxDraftTokens,
    MaxTokens,
    MinTokens,
    Seed,
    TopLogprobs,
    WideTemperature,
)
from slipstream.server.schemas.base import parse
from slipstream.server.schemas.openai import check_model
from slipstream.server.schemas.prompts import text_prompts, token_prompt, token_prompts
from slipstream.server.schemas.sampling import SharedSampling, sampling_params
from slipstream.server.schemas.speculation import Speculation

DEFAULT_MAX_NEW_TOKENS = 128  # SGLang's default

_TEXT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_IDS = {
    "anyOf": [
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}
_PARAMS = {"anyOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}}]}


class NativeSampling(SharedSampling):
    """The object `sampling_params`."""

    max_new_tokens: MaxTokens = DEFAULT_MAX_NEW_TOKENS
    min_new_tokens: MinTokens = 0
    temperature: WideTemperature = 1.0
    sampling_seed: Seed | None = None
    n: Choices = 1
    # For measuring: no more drafts of a step are accepted. The answer stays the same by the default rule; by rejection
    # sampling only its distribution does; with simulated acceptance nothing of it is right, capped or not.
    accept_cap: MaxDraftTokens | None = None

    def to_params(
        self,
        config: ServerConfig,
        *,
        seed: int,
        top_logprobs: int | None,
        prompt_logprobs_from: int | None,
        max_draft_tokens: int | None,
    ) -> SamplingParams:
        """What the runtime is told; `seed` counts when the request brings none."""
        return sampling_params(
            self,
            config,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            seed=self.sampling_seed if self.sampling_seed is not None else seed,
            top_logprobs=top_logprobs,
            prompt_logprobs_from=prompt_logprobs_from,
            max_draft_tokens=max_draft_tokens,
            accept_cap=self.accept_cap,
            path="sampling_params.",
        )


class GenerateRequest(Speculation):
    """One prompt or a list of them; `sampling_params` and `rid` are for all, or lists with one entry for each."""

    text: Annotated[Any, WithJsonSchema(_TEXT)] = None
    input_ids: Annotated[Any, WithJsonSchema(_IDS)] = None
    sampling_params: Annotated[Any, WithJsonSchema(_PARAMS)] = Field(default_factory=dict)
    stream: bool = False
    return_logprob: bool = False
    logprob_start_len: Annotated[int, Field(ge=-1, le=2**31 - 1)] = -1  # -1: of the answer only
    top_logprobs_num: TopLogprobs = 0
    return_text_in_logprobs: bool = False
    rid: Annotated[Any, WithJsonSchema(_TEXT)] = None
    model: str | None = None

    def check(self, config: ServerConfig) -> None:
        """Rules between fields; raises RequestError."""
        check_model(self.model, config)
        if self.return_logprob:
            return
        for name in ("top_logprobs_num", "logprob_start_len", "return_text_in_logprobs"):
            if getattr(self, name) != GenerateRequest.model_fields[name].default:
                raise RequestError(f"{name} needs return_logprob: true", param=name)

    @property
    def is_batch(self) -> bool:
        """The request holds a list of prompts, and so does the answer."""
        if self.text is not None:
            return isinstance(self.text, list)
        return isinstance(self.input_ids, list) and bool(self.input_ids) and isinstance(self.input_ids[0], list)

    def prompts(self, config: ServerConfig) -> list[TextPrompt | TokenPrompt]:
        """The prompts, checked; raises RequestError."""
        if (self.text is None) == (self.input_ids is None):
            raise RequestError(
                "send either text or input_ids, not " + ("both" if self.text is not None else "neither"), param="text"
            )
        if self.input_ids is not None:
            if self.is_batch:
                return [*token_prompts(self.input_ids, config.vocab_size, "input_ids")]
            return [token_prompt(self.input_ids, config.vocab_size, "input_ids")]
        if not isinstance(self.text, (str, list)):
            raise RequestError(f"text must be a string or a list of strings, got {shown(self.text)}", param="text")
        return [*text_prompts(self.text, "text")] if isinstance(self.text, list) else [TextPrompt(self.text)]

    def samplings(self, num_prompts: int) -> list[NativeSampling]:
        """Sampling parameters of each prompt."""
        value = self.sampling_params
        if isinstance(value, dict):
            return [parse(NativeSampling, value, "sampling_params")] * num_prompts
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise RequestError(
                f"sampling_params must be an object or a list of objects, got {shown(value)}", param="sampling_params"
            )
        _check_length(value, num_prompts, self.is_batch, "sampling_params")
        return [parse(NativeSampling, item, f"sampling_params.{index}") for index, item in enumerate(value)]

    def rids(self, num_prompts: int) -> list[str] | None:
        """The client's ids, one for each prompt: a single one for a batch gets `_0`, `_1`, ... appended."""
        if self.rid is None:
            return None
        for rid in self.rid if isinstance(self.rid, list) else [self.rid]:
            if not isinstance(rid, str) or not REQUEST_ID.fullmatch(rid):
                raise RequestError(
                    f"rid must be 1 to 200 printable ASCII characters without spaces, got {shown(rid)}", param="rid"
                )
        if isinstance(self.rid, str):
            return [f"{self.rid}_{index}" for index in range(num_prompts)] if self.is_batch else [self.rid]
        _check_length(self.rid, num_prompts, self.is_batch, "rid")
        return list(self.rid)


def _check_length(value: list[Any], num_prompts: int, is_batch: bool, param: str) -> None:
    if not is_batch or len(value) != num_prompts:
        prompts = f"{num_prompts} prompts" if is_batch else "one prompt that is no list"
        raise RequestError(f"{param} is a list of {len(value)}, but the request has {prompts}", param=param)
