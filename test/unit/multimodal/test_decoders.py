"""Decoder processes: the same answers as prepare_image(), and files that hurt nobody but their sender."""

import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from slipstream.config.images import ImageFormat
from slipstream.errors import RequestError
from slipstream.multimodal import decoder_child
from slipstream.multimodal.decoder_child import answer_to
from slipstream.multimodal.decoder_messages import Decode, Refused
from slipstream.multimodal.decoders import NUM_DECODERS, ImageDecoders
from slipstream.multimodal.prepare import prepare_image

CONFIG = ImageFormat(14, 2, 280, 10, 12, 13)


def file(size: tuple[int, int], kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def processes() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "slipstream.multimodal.decoder_child" in child.cmdline()]


@pytest.fixture(scope="module")
def decoders() -> Iterator[ImageDecoders]:
    decoders = ImageDecoders(CONFIG)
    yield decoders
    decoders.close()
    assert processes() == []


def test_answers_are_those_of_prepare_image(decoders: ImageDecoders) -> None:
    for size, kind in (((60, 30), "PNG"), ((700, 350), "JPEG"), ((1, 1), "GIF"), ((1, 900), "WEBP")):
        data = file(size, kind)
        ours, wanted = decoders.prepare(data), prepare_image(data, CONFIG)
        assert decoders.size(data) == size
        assert ours.grid == wanted.grid and ours.digest == wanted.digest
        assert np.array_equal(ours.pixels, wanted.pixels)


@pytest.mark.parametrize("data", [b"", b"nonsense", file((60, 30))[:100], file((60, 30), "WEBP")[:-9]])
def test_refusals_are_those_of_prepare_image(decoders: ImageDecoders, data: bytes) -> None:
    with pytest.raises(RequestError) as wanted:
        prepare_image(data, CONFIG)
    with pytest.raises(RequestError) as caught:
        decoders.prepare(data)
    assert (str(caught.value), caught.value.code) == (str(wanted.value), "invalid_image")


def test_a_size_is_known_without_unpacking(decoders: ImageDecoders) -> None:
    stream = io.BytesIO()
    Image.new("1", (8192, 8192)).save(stream, "PNG")
    assert decoders.size(stream.getvalue()[:100]) == (8192, 8192)


def test_more_threads_than_processes(decoders: ImageDecoders) -> None:
    sizes = [(20 + i, 30) for i in range(4 * NUM_DECODERS)]
    found: dict[tuple[int, int], tuple[int, int]] = {}
    threads = [
        threading.Thread(target=lambda size=size: found.update({size: decoders.size(file(size))})) for size in sizes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {size: size for size in sizes}


def test_a_crash_ends_one_request_and_a_dead_process_none(decoders: ImageDecoders) -> None:
    for process in processes():
        process.suspend()  # a file that its reader does not survive: here it gets no further
    refused: list[RequestError] = []

    def ask() -> None:
        try:
            decoders.size(file((60, 30)))
        except RequestError as error:
            refused.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    killed = processes()
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
    thread.join(10)
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in killed):
        time.sleep(0.01)  # one that dies only now would count as crashed by the next file
    assert [error.code for error in refused] == ["invalid_image"] and "cannot be decoded" in str(refused[0])
    for _ in range(2 * NUM_DECODERS):
        assert decoders.size(file((60, 30))) == (60, 30)


def test_a_file_that_takes_too_long_is_refused(decoders: ImageDecoders) -> None:
    image = file((8, 8), "JPEG")
    with pytest.raises(RequestError, match="takes too long") as caught:
        decoders.size(image[:2] + b"\xff" * (14 * 2**20) + image[2:])  # fill bytes, which are legal
    assert (caught.value.status, caught.value.code) == (400, "invalid_image")
    assert decoders.size(image) == (8, 8)


def test_too_much_memory_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(data: bytes, config: ImageFormat) -> Any:
        raise MemoryError

    monkeypatch.setattr(decoder_child, "prepare_image", greedy)
    answer = answer_to(Decode(file((8, 8))), CONFIG)
    assert isinstance(answer, Refused) and "memory" in answer.message
