"""The tokenizer process: load the tokenizer, then move messages until told to stop."""

import gc
from collections import deque
from collections.abc import Callable

from slipstream.config.images import ImageFormat
from slipstream.config.processes import TokenizerConfig
from slipstream.errors import CheckpointError, ConfigError
from slipstream.messages.queues import Inbox, Outbox
from slipstream.messages.to_scheduler import FromTokenizer
from slipstream.messages.to_server import FromTokenizerToServer, Stage, ToServer
from slipstream.messages.to_tokenizer import AbortRequest, FromServer, Generate, Tokenize, ToTokenizer
from slipstream.multimodal.decoders import ImageDecoders
from slipstream.tokenizer.core import TokenizerCore
from slipstream.tokenizer.long_prompts import LongPrompts, is_long
from slipstream.tokenizer.text_tokenizer import TextTokenizer

WAIT_S = 0.1  # how soon `stop` is seen when nothing happens
POLL_S = 0.01  # how soon a long prompt is seen to be done


def run(
    config: TokenizerConfig,
    inbox: Inbox[ToTokenizer],
    to_scheduler: Outbox[FromTokenizer],
    to_server: Outbox[ToServer],
    stop: Callable[[], bool],
) -> None:
    """Serve until stop() is true. Raises ConfigError or CheckpointError when the tokenizer cannot be loaded."""
    to_server.put(Stage("tokenizer", f"loading {config.tokenizer_path}"))
    tokenizer = load_tokenizer(config)
    to_server.put(Stage("tokenizer", f"{config.tokenizer_kind} with {tokenizer.vocab_size} tokens"))
    decoders = ImageDecoders(config.images) if config.images is not None else None
    core = make_core(config, tokenizer, to_scheduler, to_server, decoders)
    requests: deque[ToTokenizer] = deque()
    long_prompts = LongPrompts(core.encode)
    gc.freeze()  # modules and vocabulary stay: a collection that looked at them would hold up all streams
    while not stop():
        turn(core, inbox, requests, long_prompts)
    long_prompts.close()
    if decoders is not None:
        decoders.close()


def make_core(
    config: TokenizerConfig,
    tokenizer: TextTokenizer,
    to_scheduler: Outbox[FromTokenizer],
    to_server: Outbox[FromTokenizerToServer],
    decoder: ImageDecoders | None,
) -> TokenizerCore:
    """What both a tokenizer process and an Engine run. Stop ids are the checkpoint's and the tokenizer's."""
    return TokenizerCore(
        tokenizer,
        to_scheduler,
        to_server,
        eos_token_ids=tuple(dict.fromkeys([*config.eos_token_ids, *tokenizer.eos_token_ids])),
        vocab_size=config.vocab_size,
        image_token_id=config.image_token_id,
        decoder=decoder,
    )


def turn(
    core: TokenizerCore, inbox: Inbox[ToTokenizer], requests: deque[ToTokenizer], long_prompts: LongPrompts
) -> None:
    """Handle everything that the scheduler has sent and every abort, then one message of the server.

    So running streams wait for at most one short tokenisation, and nothing is tokenised for a client that has gone.
    `requests` holds the server's messages that wait; those with long prompts wait in `long_prompts`.
    """
    if not requests:
        inbox.wait(POLL_S if long_prompts.busy else WAIT_S)
    for message in inbox.drain():
        if isinstance(message, AbortRequest):
            _drop(requests, message.rid)
            long_prompts.drop(message.rid)
            core.handle(message)
        elif isinstance(message, Generate | Tokenize) and is_long(message):
            long_prompts.start(message)
        elif isinstance(message, FromServer):
            requests.append(message)
        else:
            core.handle(message)
    for request, encoded in long_prompts.take():
        core.handle(request, encoded)
    if requests:
        core.handle(requests.popleft())


def _drop(requests: deque[ToTokenizer], rid: str) -> None:
    """Take what has this rid out of `requests`."""
    waiting = [message for message in requests if isinstance(message, Generate | Tokenize) and message.rid == rid]
    for message in waiting:
        requests.remove(message)


def load_tokenizer(config: TokenizerConfig) -> TextTokenizer:
    """The tokenizer that the configuration names.

    Raises ConfigError for an unknown kind, CheckpointError for files that cannot be used or do not fit the model.
    """
    if config.tokenizer_kind not in LOADERS:
        raise ConfigError(f"unknown kind of tokenizer {config.tokenizer_kind!r}; known: {', '.join(LOADERS)}")
    tokenizer = LOADERS[config.tokenizer_kind](config.tokenizer_path, config.images)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            config.tokenizer_path,
            [
                f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary has {config.vocab_size}: "
                "they do not belong together; name the model's own tokenizer with --tokenizer-path"
            ],
        )
    return tokenizer


def _load_tekken(path: str, images: ImageFormat | None) -> TextTokenizer:
    from slipstream.tokenizer.tekken import TekkenTokenizer

    return TekkenTokenizer(path, images)


def _load_sentencepiece(path: str, images: ImageFormat | None) -> TextTokenizer:
    from slipstream.tokenizer.sentencepiece import SentencePieceTokenizer

    return SentencePieceTokenizer(path, images)


def _load_hf(path: str, images: ImageFormat | None) -> TextTokenizer:
    from slipstream.tokenizer.hf import HfTokenizer

    return HfTokenizer(path, images)


LOADERS: dict[
    str, Callable[[str, ImageFormat | None], TextTokenizer]
] = {  # each imports its library only when it is the one
    "tekken": _load_tekken,
    "sentencepiece": _load_sentencepiece,
    "hf": _load_hf,
}
