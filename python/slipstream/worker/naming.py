"""Errors of the GPU come up without a word on what was being done: this adds it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from triton.errors import TritonError

from slipstream.errors import SlipstreamError


@contextmanager
def naming(what: str, memory_flags: str, error_class: type[SlipstreamError]) -> Iterator[None]:
    """Raises error_class in place of what torch, CUDA and Triton raise: with `what` was done, and flags that help."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise error_class(f"no memory left for {what}; lower {memory_flags}: {error}") from error
    except (RuntimeError, TritonError) as error:
        raise error_class(
            f"the GPU failed at {what}, or right before it: {error}; --disable-cuda-graph does without graphs, "
            "--attention-backend torch_native without our attention kernels; to find the kernel, start with "
            "--disable-cuda-graph and CUDA_LAUNCH_BLOCKING=1 in the environment"
        ) from error
