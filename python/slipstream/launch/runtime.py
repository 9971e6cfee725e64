"""What the offline Engine needs of a runtime, in either form."""

from collections.abc import Callable
from typing import Protocol

from slipstream.messages.queues import Outbox
from slipstream.messages.to_server import ToServer
from slipstream.messages.to_tokenizer import FromServer

OnMessage = Callable[[ToServer], None]
OnFailure = Callable[[str], None]


class Runtime(Protocol):
    """Tokenizer, scheduler and worker behind one outbox. Both callbacks are called in the owner's event loop."""

    @property
    def to_tokenizer(self) -> Outbox[FromServer]: ...

    def start(self) -> None:
        """Begin to load; SchedulerReady comes when requests may be sent."""
        ...

    def stop(self) -> None:
        """End everything; returns when it has ended. Not to be called from the event loop."""
        ...
