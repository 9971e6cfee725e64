"""Reading server-sent events, as the HTML standard defines them, from pieces of a byte stream."""

import re

# Not str.splitlines: it also breaks at U+2028 and others, which JSON strings may hold as they are.
# A carriage return that ends the buffer waits for the next piece: a line feed may follow it.
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


class EventParser:
    """Feed it bytes as they arrive; it gives back the data of every event that they complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def push(self, piece: bytes) -> list[bytes]:
        """The data of each event that ends in `piece`, in order. Comments and fields other than data are left out."""
        *lines, self._rest = _LINE_END.split(self._rest + piece)
        events = []
        for line in lines:
            if line:
                self._take(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
