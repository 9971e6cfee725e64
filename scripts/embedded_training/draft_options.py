"""What the command line says of a draft's recipe and rows, by the names of their fields."""

from __future__ import annotations

import argparse
from dataclasses import fields

from embedded_training.draft_stages import CPU_SIZES, TEXT_SIZES, RowSizes
from embedded_training.draft_train import DraftRecipe

RECIPE_HELP = {
    "seconds": "time for training itself, over which the learning rate falls to zero",
    "seed": "of the rows that are drawn and of the first weights",
    "unrolled_steps": "steps that the draft goes on alone in training: as many as it will draft",
    "step_decay": "how much less each of these steps counts than the one before",
    "hard_share": "share of the target's distribution moved to its likeliest token",
    "hidden_weight": "weight of the loss on hidden states",
    "matrix_lr": "learning rate of matrices (Muon)",
    "vector_lr": "learning rate of norms (AdamW)",
    "weight_decay": "of matrices",
    "warmup_share": "share of the time in which the learning rate rises",
    "decay_share": "share of the time, at its end, in which it falls",
}
SIZES_HELP = {
    "batch_tokens": "tokens of a batch of each kind; lower it when memory runs out",
    "source_length": "tokens of a row of text that the target continues",
    "source_batches": "batches of such rows in a step",
    "long_length": "tokens of a row of text as it is",
    "chat_length": "tokens of a conversation with its answer",
    "written_rows": "most rows that the target continues",
    "chat_rows": "most conversations that it answers",
    "at_once": "rows that it continues together, fewer where memory is short",
    "write_seconds": "limit on the time for that; with --text half of it is for conversations, if there are any",
    "measured": "prompts of each kind for the measurements during training",
}


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """An option for each field of DraftRecipe."""
    for field in fields(DraftRecipe):
        text = f"{RECIPE_HELP[field.name]} (default: {field.default})"
        parser.add_argument(_flag(field.name), type=type(field.default), default=field.default, help=text)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """An option for each field of RowSizes, None where it is not given."""
    for field in fields(RowSizes):
        defaults = f"{field.default} with --corpus, {getattr(TEXT_SIZES, field.name)} with --text"
        text = f"{SIZES_HELP[field.name]} (default: {defaults}, {getattr(CPU_SIZES, field.name)} on a CPU)"
        parser.add_argument(_flag(field.name), type=type(field.default), help=text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
