"""Sampling fields that all ways of generating share, and what the runtime is told."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from slipstream.config.processes import ServerConfig
from slipstream.errors import RequestError
from slipstream.messages.sampling import SamplingParams
from slipstream.server.error_body import shown
from slipstream.server.limits import (
    MAX_STOP_STRINGS,
    LogitBias,
    MinP,
    Penalty,
    RepetitionPenalty,
    StopString,
    StopTokenIds,
    TopK,
    TopP,
    check_token_ids,
)
from slipstream.server.schemas.base import Schema

GREEDY_BELOW = 1e-5  # a smaller temperature differs from greedy decoding by overflow only


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[list[StopString], BeforeValidator(_as_list), Field(max_length=MAX_STOP_STRINGS)]


class SharedSampling(Schema):
    """What /generate and the OpenAI routes call by the same names."""

    top_p: TopP = 1.0
    top_k: TopK = 0
    min_p: MinP = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    logit_bias: LogitBias = Field(default_factory=dict)
    stop: Stop = Field(default_factory=list)
    stop_token_ids: StopTokenIds = Field(default_factory=list)
    ignore_eos: bool = False
    skip_special_tokens: bool = True


def sampling_params(
    fields: SharedSampling,
    config: ServerConfig,
    *,
    temperature: float,
    max_new_tokens: int | None,
    min_new_tokens: int,
    seed: int,
    top_logprobs: int | None,
    prompt_logprobs_from: int | None,
    max_draft_tokens: int | None,
    accept_cap: int | None = None,
    path: str = "",
) -> SamplingParams:
    """Concrete parameters for the runtime. No `max_new_tokens` means as many as the context has room for."""
    ceiling = config.context_length if max_new_tokens is None else min(max_new_tokens, config.context_length)
    if min_new_tokens > ceiling:
        param = f"{path}min_new_tokens" if path else "min_tokens"
        raise RequestError(f"{param} is {min_new_tokens}, but at most {ceiling} new tokens may come", param=param)
    return SamplingParams(
        max_new_tokens=ceiling,
        seed=seed,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=fields.top_p,
        top_k=fields.top_k if 0 < fields.top_k < config.vocab_size else 0,
        min_p=fields.min_p,
        min_new_tokens=min_new_tokens,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        repetition_penalty=fields.repetition_penalty,
        logit_bias=_token_biases(fields.logit_bias, config.vocab_size, f"{path}logit_bias"),
        stop_token_ids=tuple(check_token_ids(fields.stop_token_ids, config.vocab_size, f"{path}stop_token_ids")),
        top_logprobs=top_logprobs,
        prompt_logprobs_from=prompt_logprobs_from,
        max_draft_tokens=max_draft_tokens,
        accept_cap=accept_cap,
    )


def _token_biases(biases: dict[str, float], vocab_size: int, param: str) -> dict[int, float]:
    result: dict[int, float] = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < vocab_size):
            raise RequestError(
                f"{param} has the key {shown(key)}; keys are token ids, 0 to {vocab_size - 1}",
                param=f"{param}.{key[:20]}",
            )
        result[int(key)] = bias
    return result
