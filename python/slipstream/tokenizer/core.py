"""The tokenizer process without its sockets: one message in, messages to the scheduler and the server out."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from slipstream.errors import Overloaded, RequestError, WorkerDied
from slipstream.log import get_logger
from slipstream.messages.queues import Outbox
from slipstream.messages.sampling import Logprob
from slipstream.messages.to_scheduler import AddRequest, FinishChoice, FromTokenizer
from slipstream.messages.to_server import (
    Detokenized,
    FromTokenizerToServer,
    TextOutput,
    TextOutputs,
    Tokenized,
    TokenText,
)
from slipstream.messages.to_tokenizer import (
    AbortRequest,
    ChatPrompt,
    Detokenize,
    FlushCache,
    FlushDone,
    Generate,
    Prompt,
    RequestFailed,
    SchedulerReady,
    SchedulerStatus,
    TextPrompt,
    Tokenize,
    TokenOutput,
    TokenOutputs,
    TokenPrompt,
    ToTokenizer,
)
from slipstream.tokenizer.chat_images import Decoder, has_images, prepare_images
from slipstream.tokenizer.draft_stats import up_to_stop
from slipstream.tokenizer.limits import check_prompt_len, choice_params
from slipstream.tokenizer.request_state import ChoiceState, HeldToken, Released, RequestState
from slipstream.tokenizer.stop_strings import StopMatcher, StopStrings
from slipstream.tokenizer.text_tokenizer import Encoded, TextTokenizer, decode

logger = get_logger(__name__)

MAX_PIXEL_BYTES = 2 * 2**30  # pixels of all requests that have not ended: they lie in memory until then
CONTEXT_LEN = 8  # tokens of the prompt that the answer's first text may depend on


class TokenizerCore:
    """Holds the state of every request in flight; handle() is its only way in.

    `vocab_size` is the model's (its embedding may have more rows than the tokenizer has ids); `image_token_id` is that
    of a model that takes images. Without a `decoder` image files are read in this process, by the tokenizer. A request
    that fails is answered with RequestFailed and forgotten; no request can end the process.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        to_scheduler: Outbox[FromTokenizer],
        to_server: Outbox[FromTokenizerToServer],
        *,
        eos_token_ids: Sequence[int],
        vocab_size: int,
        image_token_id: int | None = None,
        decoder: Decoder | None = None,
        max_image_bytes: int = MAX_PIXEL_BYTES,
    ) -> None:
        self._tokenizer = tokenizer
        self._to_scheduler = to_scheduler
        self._to_server = to_server
        self._eos_token_ids = tuple(eos_token_ids)
        self._vocab_size = vocab_size
        self._ready: SchedulerReady | None = None
        self._requests: dict[str, RequestState] = {}
        self._image_token_id = image_token_id
        self._decoder = decoder
        self._max_image_bytes = max_image_bytes

    @property
    def num_requests(self) -> int:
        """Requests of which at least one choice has not ended."""
        return len(self._requests)

    def handle(self, message: ToTokenizer, encoded: Callable[[], Encoded] | None = None) -> None:
        """Do everything that one message asks for.

        `encoded` gives (or raises) what encode() did for the message's prompt, where that ran elsewhere before.
        """
        match message:
            case TokenOutputs():
                self._answer(message)
            case Generate(rid=rid, prompt=prompt):
                self._guard(rid, partial(self._generate, message, encoded or partial(self.encode, prompt)))
            case Tokenize(rid=rid, prompt=prompt):
                self._guard(rid, partial(self._tokenize, message, encoded or partial(self.encode, prompt)))
            case Detokenize():
                self._guard(message.rid, partial(self._detokenize, message))
            case AbortRequest():
                self._abort(message.rid)
            case RequestFailed():
                self._requests.pop(message.rid, None)
                self._to_server.put(message)
            case FlushCache():
                self._to_scheduler.put(message)
            case SchedulerReady():
                self._ready = message
                self._to_server.put(message)
            case FlushDone() | SchedulerStatus():
                self._to_server.put(message)

    def _guard(self, rid: str, work: Callable[[], None]) -> None:
        """The per-request border: an error in `work` ends this request alone; a hung receiver ends the process."""
        try:
            work()
        except WorkerDied:
            raise
        except RequestError as error:
            self._fail(RequestFailed(rid, error.status, str(error), error.param, error.code))
        except Exception:
            logger.exception("request %s failed", rid)
            self._fail(
                RequestFailed(
                    rid, 500, "the tokenizer failed on this request; the server's log says where", code="internal_error"
                )
            )

    def _fail(self, failure: RequestFailed) -> None:
        self._abort(failure.rid)  # if it runs: no one waits for its tokens any more
        self._to_server.put(failure)

    def _abort(self, rid: str) -> None:
        """Forget the request at once: nobody waits for the rest of its text."""
        if self._requests.pop(rid, None) is not None:
            self._to_scheduler.put(AbortRequest(rid))

    # --- from the server -------------------------------------------------------------------------------------------

    def _generate(self, message: Generate, encoded: Callable[[], Encoded]) -> None:
        if self._ready is None:
            raise RequestError(
                "the model is still loading; try again when /health answers 200", status=503, code="not_ready"
            )
        prompt = encoded()
        token_ids = prompt.token_ids
        check_prompt_len(len(token_ids), self._ready, _prompt_param(message.prompt))
        self._check_image_tokens(prompt, _prompt_param(message.prompt))
        self._check_ids(message.sampling.stop_token_ids, "stop_token_ids")
        self._check_ids(message.sampling.logit_bias, "logit_bias")
        choices = choice_params(message, self._eos_token_ids, room=self._ready.max_sequence_len - len(token_ids))
        self._check_image_bytes(prompt.num_image_bytes)
        state = self._new_state(message, token_ids)
        state.num_image_bytes = prompt.num_image_bytes
        self._requests[message.rid] = state
        self._to_scheduler.put(AddRequest(message.rid, token_ids, choices, prompt.images))

    def _check_image_tokens(self, prompt: Encoded, param: str) -> None:
        """An image token without an image would show the model its own embedding, which was never trained."""
        if self._image_token_id is not None and not prompt.images and self._image_token_id in prompt.token_ids:
            raise RequestError(
                f"the prompt holds token id {self._image_token_id} at position "
                f"{prompt.token_ids.index(self._image_token_id)}, which stands for a part of an image, but no image: "
                "send images with messages, to /v1/chat/completions",
                param=param,
                code="image_token_without_image",
            )

    def _check_image_bytes(self, num_new: int) -> None:
        if num_new == 0:
            return
        num_bytes = sum(state.num_image_bytes for state in self._requests.values())
        if num_bytes + num_new > self._max_image_bytes:
            raise Overloaded(
                f"the images of the requests in flight have {num_bytes} bytes of pixels, these {num_new} more; at most "
                f"{self._max_image_bytes} are held at once; try again later"
            )

    def _new_state(self, message: Generate, token_ids: list[int]) -> RequestState:
        stops = StopStrings(message.stop) if message.stop else None
        skip = message.skip_special_tokens
        context = token_ids[-CONTEXT_LEN:] if self._continues(message.prompt, token_ids) else []
        choices = {
            i: ChoiceState(
                self._tokenizer.detokenizer(skip_special_tokens=skip, context=context),
                StopMatcher(stops) if stops else None,
                message.sampling.min_new_tokens,
            )
            for i in range(message.num_choices)
        }
        state = RequestState(choices, token_ids[0] if message.sampling.prompt_logprobs_from == 0 else None)
        if message.echo:
            state.prompt_token_ids = token_ids
            state.prompt_text = (
                message.prompt.text
                if isinstance(message.prompt, TextPrompt)
                else decode(self._tokenizer.detokenizer(skip_special_tokens=skip), token_ids)
            )
        return state

    def _continues(self, prompt: Prompt, token_ids: list[int]) -> bool:
        """Whether the answer goes on from the prompt's text, instead of beginning a message of its own."""
        if isinstance(prompt, ChatPrompt):
            return bool(prompt.messages[-1].get("prefix"))
        return not self._tokenizer.is_special(token_ids[-1])

    def encode(self, prompt: Prompt, dropped: Callable[[], bool] = lambda: False) -> Encoded:
        """The prompt's ids, at least one, all of them the model's, and its images; RequestError else.

        Any thread may call it. `dropped` says when nobody waits any more.
        """
        match prompt:
            case TextPrompt():
                encoded = Encoded(self._tokenizer.encode(prompt.text))
            case TokenPrompt():
                encoded = Encoded(prompt.token_ids)
            case ChatPrompt():
                encoded = self._tokenizer.encode_chat(self._prepared(prompt.messages, dropped))
        if not encoded.token_ids:
            raise RequestError("the prompt is empty: it has no tokens", param=_prompt_param(prompt))
        self._check_ids(encoded.token_ids, _prompt_param(prompt))
        return encoded

    def _prepared(
        self, messages: Sequence[Mapping[str, Any]], dropped: Callable[[], bool]
    ) -> Sequence[Mapping[str, Any]]:
        """The messages with their images decoded, if that is not the tokenizer's work."""
        if self._decoder is None or not has_images(messages):
            return messages
        max_tokens = self._ready.max_sequence_len if self._ready is not None else None
        return prepare_images(messages, self._decoder, max_tokens, dropped)

    def _check_ids(self, token_ids: Sequence[int] | dict[int, float], param: str) -> None:
        if token_ids and (min(token_ids) < 0 or max(token_ids) >= self._vocab_size):
            bad = next(i for i in token_ids if not 0 <= i < self._vocab_size)
            raise RequestError(
                f"token id {bad} in {param} is outside the model's vocabulary of {self._vocab_size} "
                f"tokens (0 to {self._vocab_size - 1})",
                param=param,
            )

    def _tokenize(self, message: Tokenize, encoded: Callable[[], Encoded]) -> None:
        self._to_server.put(Tokenized(message.rid, encoded().token_ids))

    def _detokenize(self, message: Detokenize) -> None:
        self._check_ids(message.token_ids, "tokens")
        detokenizer = self._tokenizer.detokenizer(skip_special_tokens=message.skip_special_tokens)
        self._to_server.put(Detokenized(message.rid, decode(detokenizer, message.token_ids)))

    # --- from the scheduler ----------------------------------------------------------------------------------------

    def _answer(self, message: TokenOutputs) -> None:
        """Turn one turn's tokens into text; what there is for the clients leaves as one message."""
        outputs: list[TextOutput] = []
        for output in message.outputs:
            state = self._requests.get(output.rid)
            choice = state.choices.get(output.choice) if state else None
            if state is not None and choice is not None:  # else it ended here already, by a stop string or an error
                self._guard(output.rid, partial(self._advance, output, state, choice, outputs))
        if outputs:
            self._to_server.put(TextOutputs(outputs))

    def _advance(
        self, output: TokenOutput, state: RequestState, choice: ChoiceState, outputs: list[TextOutput]
    ) -> None:
        """Feed one choice; append what it releases to `outputs`."""
        num_before = choice.num_read
        released = choice.add(output.token_ids, output.logprobs, output.finish)
        choice.drafts = up_to_stop(choice.drafts, output.drafts, choice.num_read - num_before)
        if released.finish is not None:
            self._end_choice(output, state, choice)
        echo = state.prompt_token_ids is not None and output.choice not in state.echoed
        if not (released.text or released.tokens or released.finish or echo or output.prompt_logprobs is not None):
            return
        state.echoed.add(output.choice)
        outputs.append(
            TextOutput(
                output.rid,
                output.choice,
                released.text,
                [token.token_id for token in released.tokens],
                output.prompt_len,
                output.num_cached,
                choice.num_generated,
                released.finish,
                self._token_texts(released) if output.logprobs is not None or _has_logprobs(released) else None,
                self._prompt_texts(state, output.prompt_logprobs),
                state.prompt_text if echo else None,
                state.prompt_token_ids if echo else None,
                choice.drafts,
            )
        )

    def _end_choice(self, output: TokenOutput, state: RequestState, choice: ChoiceState) -> None:
        del state.choices[output.choice]
        if not state.choices:
            del self._requests[output.rid]
        if output.finish is None:  # the scheduler does not know yet
            self._to_scheduler.put(FinishChoice(output.rid, output.choice, choice.num_generated))

    def _token_texts(self, released: Released) -> list[TokenText]:
        return [self._token_text(token) for token in released.tokens]

    def _token_text(self, token: HeldToken) -> TokenText:
        if token.logprob is None:
            return TokenText(token.token_id, self._tokenizer.token_bytes(token.token_id), None)
        return self._logprob_text(token.logprob)

    def _logprob_text(self, logprob: Logprob) -> TokenText:
        data = self._tokenizer.token_bytes
        return TokenText(
            logprob.token_id,
            data(logprob.token_id),
            logprob.logprob,
            [(token_id, data(token_id), value) for token_id, value in logprob.top],
        )

    def _prompt_texts(self, state: RequestState, logprobs: list[Logprob] | None) -> list[TokenText] | None:
        """The prompt's logprobs; position 0, which has none, comes first where it was asked for."""
        if logprobs is None:
            return None
        first = state.first_prompt_token
        head = [] if first is None else [TokenText(first, self._tokenizer.token_bytes(first), None)]
        return head + [self._logprob_text(logprob) for logprob in logprobs]


def _prompt_param(prompt: Prompt) -> str:
    return "messages" if isinstance(prompt, ChatPrompt) else "prompt"


def _has_logprobs(released: Released) -> bool:
    return any(token.logprob is not None for token in released.tokens)
