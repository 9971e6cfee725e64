"""The same model in transformers: the independent reference for what a checkpoint computes."""

import tempfile
from pathlib import Path

import torch
from transformers import MistralForCausalLM

from support.scripts import load_script


def load_native(folder: Path) -> MistralForCausalLM:
    """The Mistral-native dense checkpoint in `folder` as a transformers model in fp32."""
    with tempfile.TemporaryDirectory() as converted:
        load_script("native_to_hf").convert(folder, Path(converted))
        return MistralForCausalLM.from_pretrained(converted, dtype=torch.float32, local_files_only=True).eval()


@torch.inference_mode()
def likeliest_after(model: MistralForCausalLM, prompt: list[int], answer: list[int]) -> list[int]:
    """The likeliest token after `prompt` and after each further token of `answer`, short of the last.

    `answer` is what greedy decoding gives exactly when this equals it: each token is judged after the same prefix.
    """
    logits = model(torch.tensor([prompt + answer])).logits[0]
    return [int(token_id) for token_id in logits[len(prompt) - 1 : -1].argmax(-1)]
