"""The images of running prompts: their pixels until they are needed, then their features until the prompt is done."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.config.images import ImageFormat
from slipstream.errors import RequestError
from slipstream.messages.images import ImageInput
from slipstream.messages.to_worker import PrefillChunk
from slipstream.models.base import ImageEncoder, ImageRows

_Key = tuple[bytes, int, int]  # digest, height, width


@dataclass
class _Stored:
    """One image, whoever uses it. It holds its pixels or its features, never both."""

    pixels: Tensor | None  # uint8 [height, width, 3] on the host
    features: Tensor | None  # [merged patches, D] on the device
    num_users: int = 0


@dataclass(frozen=True)
class _Span:
    """Where an image stands in a slot's prompt: rows of `num_columns` image tokens and a break, from `offset` on."""

    key: _Key
    offset: int
    num_tokens: int  # that stand for merged patches, breaks not counted
    num_columns: int


class ImageStore:
    """Images by slot. Slots with the same image share it; what no slot uses is freed.

    An image is encoded in the first step that computes any of its tokens.
    """

    def __init__(self, encoder: ImageEncoder, image_format: ImageFormat, device: torch.device) -> None:
        self._encoder = encoder
        self._format = image_format
        self._device = device
        self._stored: dict[_Key, _Stored] = {}
        self._spans: dict[int, list[_Span]] = {}  # slot -> in the order of their offsets

    @property
    def in_use(self) -> bool:
        """Does any slot have images whose prompt is not yet computed?"""
        return bool(self._spans)

    def add(self, slot: int, token_ids: Sequence[int], images: Sequence[ImageInput]) -> None:
        """The images of a request that enters an empty slot.

        Raises RequestError, and keeps nothing, where an image and its tokens do not fit together.
        """
        end = 0
        for image in images:
            check_image(image, token_ids, self._format, end)
            end = image.offset + image.length
        patch = self._format.token_side
        self._spans[slot] = [
            _Span(
                (image.digest, image.height, image.width),
                image.offset,
                (image.height // patch) * (image.width // patch),
                image.width // patch,
            )
            for image in images
        ]
        for span, image in zip(self._spans[slot], images, strict=True):
            if span.key not in self._stored:
                self._stored[span.key] = _Stored(_to_tensor(image), None)
            self._stored[span.key].num_users += 1

    def release(self, slot: int) -> None:
        """The slot needs its images no more: its prompt is computed, or its request is gone."""
        for span in self._spans.pop(slot, ()):
            stored = self._stored[span.key]
            stored.num_users -= 1
            if not stored.num_users:
                del self._stored[span.key]

    def rows(
        self,
        num_before: int,
        chunks: Sequence[PrefillChunk],
        before_encoding: Callable[[int], None],
        *,
        ahead: int = 0,
    ) -> ImageRows | None:
        """The image tokens among the rows of a step: `num_before` rows of decode slots, then the chunks. A row stands
        for the token `ahead` positions after its own.

        Encodes what is not encoded yet, all images of the step together; `before_encoding` gets the number of patches.
        """
        parts: list[tuple[_Span, int, range]] = []  # span, row of the step at the span's first token, image tokens
        begin = num_before
        for chunk in chunks:
            first = chunk.start + ahead
            for span in self._spans.get(chunk.slot, ()):
                tokens = tokens_between(
                    first - span.offset, first + chunk.length - span.offset, span.num_columns, span.num_tokens
                )
                if tokens:
                    parts.append((span, begin + span.offset - first, tokens))
            begin += chunk.length
        if not parts:
            return None
        self._encode(dict.fromkeys(span.key for span, _, _ in parts), before_encoding)
        features = torch.cat([self._features(span)[tokens.start : tokens.stop] for span, _, tokens in parts])
        rows = [first + token + token // span.num_columns for span, first, tokens in parts for token in tokens]
        return ImageRows(torch.tensor(rows, device=self._device), features)

    def _encode(self, keys: Iterable[_Key], before_encoding: Callable[[int], None]) -> None:
        pixels = {key: self._stored[key].pixels for key in keys}
        missing = {key: image for key, image in pixels.items() if image is not None}
        if not missing:
            return
        before_encoding(sum(height * width for _, height, width in missing) // self._format.patch_size**2)
        for key, features in zip(missing, self._encoder.encode(list(missing.values())), strict=True):
            self._stored[key].features, self._stored[key].pixels = features, None

    def _features(self, span: _Span) -> Tensor:
        features = self._stored[span.key].features
        assert features is not None and len(features) == span.num_tokens
        return features


def tokens_between(begin: int, end: int, num_columns: int, num_tokens: int) -> range:
    """Which image tokens lie at positions [begin, end), counted from the image's first token and possibly outside it.

    An image of 2 rows and 3 columns has its tokens 0 1 2 at positions 0 1 2, a break at 3, tokens 3 4 5 at 4 5 6, and
    the end at 7.

    >>> tokens_between(2, 5, num_columns=3, num_tokens=6)
    range(2, 4)
    >>> tokens_between(-9, 100, num_columns=3, num_tokens=6)
    range(0, 6)
    >>> tokens_between(7, 9, num_columns=3, num_tokens=6)
    range(6, 6)
    """

    def before(position: int) -> int:
        rows, column = divmod(max(position, 0), num_columns + 1)
        return min(rows * num_columns + column, num_tokens)

    return range(before(begin), before(end))


def check_image(image: ImageInput, token_ids: Sequence[int], image_format: ImageFormat, first: int) -> None:
    """Raises RequestError unless pixels, grid and tokens agree. The image may not begin before position `first`."""
    patch = image_format.token_side
    longest = -(-image_format.max_size // patch) * patch
    for name, side in (("height", image.height), ("width", image.width)):
        if not 0 < side <= longest or side % patch:
            raise _refused(f"its {name} is {side} pixels, not a multiple of {patch} between {patch} and {longest}")
    if len(image.pixels) != image.height * image.width * 3:
        raise _refused(f"{image.height} x {image.width} pixels take {image.height * image.width * 3} bytes, "
                       f"but there are {len(image.pixels)}")  # fmt: skip
    expected = image_format.token_ids(image.height // patch, image.width // patch)
    if image.length != len(expected):
        raise _refused(f"{image.height} x {image.width} pixels take {len(expected)} tokens, not {image.length}")
    if image.offset < first or list(token_ids[image.offset : image.offset + image.length]) != expected:
        raise _refused(f"the prompt's tokens from {image.offset} on are not those of such an image")


def _refused(reason: str) -> RequestError:
    return RequestError(f"an image cannot be used: {reason}")


def _to_tensor(image: ImageInput) -> Tensor:
    pixels = torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3)
