"""Logits equal transformers' at every position, in both layouts and however the rows are cut into steps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralForCausalLM

from slipstream.hf_transformers.inspect import inspect_checkpoint
from support.checkpoints import reference_model, write_hf, write_native
from support.models import compute_logits, load_model
from support.parity import assert_close, expected_logits, tokens_of

CPU = torch.device("cpu")
PAGE_SIZE = 4


@pytest.mark.parametrize("layout", ["native", "hf"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tied_embeddings": True}, {"n_kv_heads": 4}, {"n_kv_heads": 1}, {"rope_theta": 1e6, "head_dim": 8}],
    ids=str,
)
def test_whole_prompt(tmp_path: Path, layout: str, changes: dict[str, Any]) -> None:
    reference = reference_model(**changes)
    folder = write_hf(tmp_path, reference) if layout == "hf" else write_native(tmp_path, reference, **changes)
    tokens = tokens_of(23, seed=1)
    assert_close(
        compute_logits(*load_model(folder), [(tokens, 0, list(range(1, 7)))]), expected_logits(reference, tokens)
    )


def test_a_stored_head_counts_although_the_file_says_that_it_is_tied(tmp_path: Path) -> None:
    folder = write_hf(tmp_path, reference_model())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    reference = MistralForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokens = tokens_of(9, seed=1)
    assert_close(compute_logits(*load_model(folder), [(tokens, 0, [1, 2, 3])]), expected_logits(reference, tokens))


def test_llama(tmp_path: Path) -> None:
    reference = reference_model(llama=True)
    tokens = tokens_of(17, seed=2)
    assert_close(
        compute_logits(*load_model(write_hf(tmp_path, reference)), [(tokens, 0, [3, 1, 2, 9, 8])]),
        expected_logits(reference, tokens),
    )


@pytest.mark.parametrize("cuts", [[7, 23], [4, 8, 12, 23], [1, 2, 23], list(range(1, 24))], ids=str)
def test_chunks_and_decode_equal_the_whole(tmp_path: Path, cuts: list[int]) -> None:
    reference = reference_model()
    model, attention = load_model(write_native(tmp_path, reference))
    tokens, pages = tokens_of(23, seed=3), [5, 2, 9, 1, 7, 3]
    logits = [
        compute_logits(model, attention, [(tokens[start:end], start, pages)])
        for start, end in zip([0, *cuts], cuts, strict=False)
    ]
    assert_close(torch.cat(logits), expected_logits(reference, tokens))


def test_rows_that_are_not_kept_leave_their_keys_and_values(tmp_path: Path) -> None:
    reference = reference_model()
    model, attention = load_model(write_native(tmp_path, reference))
    tokens, pages = tokens_of(23, seed=3), [5, 2, 9, 1, 7, 3]
    begin = compute_logits(model, attention, [(tokens[:13], 0, pages)], kept_rows=[12])
    end = compute_logits(model, attention, [(tokens[13:], 13, pages)], kept_rows=[9, 2])
    assert_close(torch.cat((begin, end)), expected_logits(reference, tokens)[[12, 22, 15]])


def test_ragged_batch_equals_each_request_alone(tmp_path: Path) -> None:
    reference = reference_model()
    model, attention = load_model(write_native(tmp_path, reference))
    lengths, starts = [9, 3, 21, 14], [8, 2, 16, 0]  # two decode rows, a chunk that continues, a whole prompt
    prompts = [tokens_of(length, seed=10 + index) for index, length in enumerate(lengths)]
    tables = [[1 + 6 * index + column for column in range(6)] for index in range(4)]
    for prompt, start, table in zip(prompts, starts, tables, strict=True):
        if start:
            compute_logits(model, attention, [(prompt[:start], 0, table)])
    logits = compute_logits(
        model,
        attention,
        [(prompt[start:], start, table) for prompt, start, table in zip(prompts, starts, tables, strict=True)],
    )
    expected = [expected_logits(reference, prompt)[start:] for prompt, start in zip(prompts, starts, strict=True)]
    assert_close(logits, torch.cat(expected))


def test_bfloat16_is_as_close_as_its_rounding(tmp_path: Path) -> None:
    reference = reference_model().to(torch.bfloat16)
    model, attention = load_model(write_native(tmp_path, reference), torch.bfloat16)
    tokens = tokens_of(23, seed=4)
    exact = expected_logits(reference.float(), tokens)
    error = compute_logits(model, attention, [(tokens, 0, list(range(1, 7)))]) - exact
    assert float(error.norm() / exact.norm()) < 0.03  # bf16 keeps 8 bits: 0.4 % per operation


def test_the_adapted_config_is_what_transformers_takes(tmp_path: Path) -> None:
    from transformers import MistralConfig

    spec = inspect_checkpoint(str(write_native(tmp_path, reference_model())))
    config = MistralConfig(**spec.config)
    assert (config.hidden_size, config.head_dim, config.sliding_window) == (48, 16, None)
    assert config.rope_parameters["rope_theta"] == 10000.0
