"""msgpack bytes and back, checked against the type of the receiver. No pickle anywhere.

Messages are plain data without cycles. Those of which one step makes hundreds have gc=False: Python's collector, which
runs by the number of objects it follows, then runs seldom while requests decode.
"""

from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")


class Codec(Generic[T]):
    """Encodes any message; decodes only what is a `kind` (a Struct or a union of tagged Structs).

    A malformed frame raises msgspec.ValidationError or msgspec.DecodeError.
    """

    def __init__(self, kind: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)

    def encode(self, message: T) -> bytes:
        return self._encoder.encode(message)

    def decode(self, frame: bytes) -> T:
        return self._decoder.decode(frame)
