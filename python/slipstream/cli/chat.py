"""`slipstream chat`: talk to a running server in the terminal, or pipe questions through it."""

import contextlib
import os
import sys
from collections.abc import Generator

from rich.console import Console

from slipstream.bench.connection import API_KEY_VARIABLE
from slipstream.cli.chat_client import AnswerFailed, ChatClient, Timing
from slipstream.cli.conversation import Conversation
from slipstream.config.flags import FlagParser

HELP = "/reset forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer"


def make_parser() -> FlagParser:
    parser = FlagParser(prog="slipstream chat", description=f"Talk to a running server. {HELP}.")
    parser.add_argument("--base-url", default="http://127.0.0.1:30000", metavar="URL", help="the server")
    parser.add_argument("--api-key", metavar="TEXT", help=f"the server's key; also read from {API_KEY_VARIABLE}")
    parser.add_argument("--system", metavar="TEXT", help="instructions that stand before the conversation")
    parser.add_argument("--temperature", type=float, metavar="X", help="0 is greedy; none: the server's default")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer; none: the server's default")
    return parser


def main(args: list[str]) -> int:
    """Returns 0, or 1 when an answer failed. Raises ConfigError when there is no server to talk to."""
    options = make_parser().parse_args(args)
    api_key = options.api_key or os.environ.get(API_KEY_VARIABLE)
    sampling = {"temperature": options.temperature, "max_tokens": options.max_tokens}
    with ChatClient(options.base_url, api_key, sampling) as client:
        model = client.model_name()
        conversation = Conversation(options.system)
        if not sys.stdin.isatty():
            try:
                return talk_through_pipe(client, conversation)
            except BrokenPipeError:  # the reader of our answers has gone; the last flush at exit must not fail again
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
        talk_in_terminal(client, conversation, model)
        return 0


def talk_through_pipe(client: ChatClient, conversation: Conversation) -> int:
    """One question for each line of stdin, the answers to stdout. Goes on after a refused question, then returns 1."""
    code = 0
    for line in sys.stdin:
        if not (question := line.strip()) or _is_command(question, conversation):
            continue
        if question == "/quit":
            break
        try:
            with contextlib.closing(_answer(client, conversation, question, Timing())) as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
        except AnswerFailed as error:
            print(f"slipstream chat: {error}", file=sys.stderr)
            code = 1
        print(flush=True)
    return code


def talk_in_terminal(client: ChatClient, conversation: Conversation, model: str) -> None:
    """Until /quit or Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{client.url}[/bold] serves ", end="")
    console.print(model, style="bold", markup=False)
    console.print(HELP, style="dim")
    while True:
        try:
            question = input("\n> ").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print(f"\n{HELP}", style="dim")
            continue
        if question == "/quit":
            return
        if _is_command(question, conversation):
            console.print("forgotten", style="dim")
        elif question:
            _show_answer(console, client, conversation, question)


def _show_answer(console: Console, client: ChatClient, conversation: Conversation, question: str) -> None:
    timing = Timing()
    try:
        with contextlib.closing(_answer(client, conversation, question, timing)) as pieces:
            for piece in pieces:
                console.print(printable(piece), end="", markup=False)
        console.print()
    except KeyboardInterrupt:
        console.print("\nstopped", style="dim")
    except AnswerFailed as error:
        console.print(f"\n{error}", style="red", markup=False)
    if text := timing.describe():
        console.print(text, style="dim")


def _answer(client: ChatClient, conversation: Conversation, question: str, timing: Timing) -> Generator[str]:
    """The pieces of one answer. Closing this early closes the connection, and with it the request at the server.

    What was answered until then is remembered; a question without any answer is forgotten.
    """
    conversation.ask(question)
    pieces: list[str] = []
    try:
        with contextlib.closing(client.answer(conversation.messages, timing)) as stream:
            for piece in stream:
                pieces.append(piece)
                yield piece
    finally:
        conversation.answer("".join(pieces))


def _is_command(text: str, conversation: Conversation) -> bool:
    """Carry out /reset."""
    if text == "/reset":
        conversation.reset()
    return text == "/reset"


def printable(text: str) -> str:
    """Without control characters: an answer must not move the cursor or talk to the terminal."""
    return "".join(char for char in text if char in "\n\t" or not (ord(char) < 32 or 127 <= ord(char) < 160))
