"""The tokenizer process: load the tokenizer, then move messages until told to stop."""

from collections import deque
from collections.abc import Callable

from slipstream.config.processes import TokenizerConfig
from slipstream.errors import CheckpointError, ConfigError
from slipstream.messages.queues import Inbox, Outbox
from slipstream.messages.to_scheduler import FromTokenizer
from slipstream.messages.to_server import Stage, ToServer
from slipstream.messages.to_tokenizer import FromServer, ToTokenizer
from slipstream.tokenizer.core import TokenizerCore
from slipstream.tokenizer.text_tokenizer import TextTokenizer

WAIT_S = 0.1  # how soon `stop` is seen when nothing happens


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
    eos_token_ids = tuple(dict.fromkeys([*config.eos_token_ids, *tokenizer.eos_token_ids]))
    core = TokenizerCore(tokenizer, to_scheduler, to_server, eos_token_ids=eos_token_ids, vocab_size=config.vocab_size)
    requests: deque[ToTokenizer] = deque()
    while not stop():
        turn(core, inbox, requests)


def turn(core: TokenizerCore, inbox: Inbox[ToTokenizer], requests: deque[ToTokenizer]) -> None:
    """Handle everything that the scheduler has sent, then one message of the server.

    So running streams wait for at most one tokenisation. `requests` holds the server's messages that wait.
    """
    if not requests:
        inbox.wait(WAIT_S)
    for message in inbox.drain():
        if isinstance(message, FromServer):
            requests.append(message)
        else:
            core.handle(message)
    if requests:
        core.handle(requests.popleft())


def load_tokenizer(config: TokenizerConfig) -> TextTokenizer:
    """The tokenizer that the configuration names.

    Raises ConfigError for an unknown kind, CheckpointError for files that cannot be used or do not fit the model.
    """
    if config.tokenizer_kind not in LOADERS:
        raise ConfigError(f"unknown kind of tokenizer {config.tokenizer_kind!r}; known: {', '.join(LOADERS)}")
    tokenizer = LOADERS[config.tokenizer_kind](config.tokenizer_path)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            config.tokenizer_path,
            [
                f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary has {config.vocab_size}: "
                "they do not belong together; name the model's own tokenizer with --tokenizer-path"
            ],
        )
    return tokenizer


def _load_tekken(path: str) -> TextTokenizer:
    from slipstream.tokenizer.tekken import TekkenTokenizer

    return TekkenTokenizer(path)


def _load_sentencepiece(path: str) -> TextTokenizer:
    from slipstream.tokenizer.sentencepiece import SentencePieceTokenizer

    return SentencePieceTokenizer(path)


def _load_hf(path: str) -> TextTokenizer:
    from slipstream.tokenizer.hf import HfTokenizer

    return HfTokenizer(path)


LOADERS: dict[str, Callable[[str], TextTokenizer]] = {  # each imports its library only when it is the one
    "tekken": _load_tekken,
    "sentencepiece": _load_sentencepiece,
    "hf": _load_hf,
}
