"""Triton kernels run on the CPU through the interpreter where there is no GPU; triton reads this when it is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
