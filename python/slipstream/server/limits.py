"""Every bound on what one request may ask for, and the rule that lets requests in.

The numeric bounds are types: a schema field of that type refuses other values and names the limit. OpenAI's own
bounds where OpenAI has one; SGLang's /generate is wider where noted.
"""

import re
from typing import Annotated

from pydantic import Field

from slipstream.config.processes import ServerConfig
from slipstream.errors import Overloaded, RequestError
from slipstream.server.error_body import shown

MAX_CHOICES = 128  # n, as at OpenAI
MAX_PROMPTS = 1024  # prompts in one request
MAX_MESSAGES = 4096
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_NAME_CHARACTERS = 256  # of model names and request ids
MAX_DETOKENIZE_IDS = 2**20
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
# A ceiling, not a demand: more than the context has room for is cut to that room. 0 computes the prompt alone.
MaxTokens = Annotated[int, Field(ge=0, le=2**31 - 1)]
MinTokens = Annotated[int, Field(ge=0, le=2**31 - 1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
WideTemperature = Annotated[float, Field(ge=0, le=100)]  # of /generate
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, le=2**31 - 1)]  # -1 and 0 are off
MinP = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=10)]
Seed = Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)]
MaxDraftTokens = Annotated[int, Field(ge=0, le=2**31 - 1)]  # a ceiling, too
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
Bias = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[dict[str, Bias], Field(max_length=MAX_LOGIT_BIAS)]  # token id, as JSON keys are: text -> bias
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
StopTokenIds = Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
REQUEST_ID = re.compile(r"[!-~]{1,200}")  # printable ASCII without spaces; matched against the whole id


def admit(num_in_flight: int, num_new: int, config: ServerConfig) -> None:
    """Let `num_new` more choices in beside `num_in_flight`, or raise.

    Overloaded when it would fit later; RequestError when the request alone is above the limit.
    """
    limit = config.max_running_requests + config.max_queued_requests
    flags = (
        f"--max-running-requests {config.max_running_requests} plus --max-queued-requests {config.max_queued_requests}"
    )
    if num_new > limit:
        raise RequestError(
            f"the request asks for {num_new} answers (prompts times n), but at most {limit} can be in "
            f"flight ({flags}); split it or raise --max-queued-requests",
            param="n",
            code="too_many_choices",
        )
    if num_in_flight + num_new > limit:
        raise Overloaded(
            f"the queue is full: {num_in_flight} of at most {limit} answers are in flight ({flags}); try again later"
        )


def check_token_ids(token_ids: list[int], vocab_size: int, param: str) -> list[int]:
    """The ids, if each is one of the model's; raises RequestError naming the first that is not.

    A body may hold millions of ids, and the event loop waits: no Python loop over those that are right.
    """
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        position, token_id = next((i, t) for i, t in enumerate(token_ids) if not 0 <= t < vocab_size)
        raise RequestError(
            f"{param}.{position} is token id {shown(token_id)}; the model's ids are 0 to {vocab_size - 1}",
            param=f"{param}.{position}",
        )
    return token_ids
