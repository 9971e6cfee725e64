"""Without a GPU, kernels run through Triton's interpreter: it reads this variable when it is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
