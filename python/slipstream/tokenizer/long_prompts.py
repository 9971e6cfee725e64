"""Long prompts, which take seconds to tokenise, beside the main loop."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from slipstream.messages.to_tokenizer import ChatPrompt, Generate, Prompt, TextPrompt, Tokenize

LONG_CHARACTERS = 2**17  # tokenised in about 50 ms: what running streams may wait
CHARACTERS_PER_PART = 64  # the time that a chat message or a part of one takes, whatever its text

Encode = Callable[[Prompt], list[int]]


class LongPrompts:
    """Tokenises long prompts one after the other in a thread of its own: text and life signs of all others go on.

    The tokenisers' libraries release the interpreter's lock while they work, and encoding changes no state of theirs.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="long-prompts")
        self._jobs: deque[tuple[Generate | Tokenize, Future[list[int]]]] = deque()

    @property
    def busy(self) -> bool:
        """Some prompt was neither taken nor dropped yet."""
        return bool(self._jobs)

    def start(self, message: Generate | Tokenize) -> None:
        """Tokenise the prompt of `message` when those before it are done."""
        self._jobs.append((message, self._thread.submit(self._encode, message.prompt)))

    def drop(self, rid: str) -> None:
        """Nobody waits for the prompt of this request any more."""
        for message, job in list(self._jobs):
            if message.rid == rid:
                job.cancel()
                self._jobs.remove((message, job))

    def take(self) -> list[tuple[Generate | Tokenize, Callable[[], list[int]]]]:
        """Those that are done, in order, each with the call that gives its ids or raises what encoding raised."""
        done: list[tuple[Generate | Tokenize, Callable[[], list[int]]]] = []
        while self._jobs and self._jobs[0][1].done():
            message, job = self._jobs.popleft()
            done.append((message, job.result))
        return done

    def close(self) -> None:
        """Start no more; does not wait for the one that runs."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def is_long(message: Generate | Tokenize) -> bool:
    """Whether the message asks for so much tokenising that others would notice. Pure."""
    return _work(message.prompt) > LONG_CHARACTERS


def _work(prompt: Prompt) -> int:
    """The time that tokenising takes, in characters of plain text; ids take none."""
    match prompt:
        case TextPrompt(text=text):
            return len(text)
        case ChatPrompt(messages=messages):
            return sum(_work_of_content(message.get("content")) for message in messages)
        case _:
            return 0


def _work_of_content(content: object) -> int:
    if isinstance(content, list):
        return sum(CHARACTERS_PER_PART + len(part.get("text", "")) for part in content if isinstance(part, dict))
    return CHARACTERS_PER_PART + (len(content) if isinstance(content, str) else 0)
