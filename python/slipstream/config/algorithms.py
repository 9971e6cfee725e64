"""The ways of drafting, and what the configuration knows of each."""

from dataclasses import dataclass

NO_DRAFTS = "none"
_NOT_SERVED = {  # names that other servers know
    "EAGLE3": "EAGLE-3 drafts",
    "NEXTN": "layers for multi-token prediction",
    "MTP": "layers for multi-token prediction",
    "FROZEN_KV_MTP": "layers for multi-token prediction",
    "STANDALONE": "whole models as drafts",
    "DFLASH": "drafts of whole blocks",
    "DSPARK": "drafts of whole blocks",
    "UNO": "adapters as drafts",
}
OF_DRAFT = (
    "speculative_draft_model_path", "speculative_draft_model_revision", "speculative_draft_load_format",
    "speculative_draft_dtype",
)  # fmt: skip
OF_NGRAM = ("speculative_ngram_min_match_window_size", "speculative_ngram_max_match_window_size")
REJECTION = "speculative_use_rejection_sampling"
_OF_ALL = (
    "speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens", "speculative_adaptive",
    "simulate_acceptance_length", "simulate_acceptance_pattern",
)  # fmt: skip


@dataclass(frozen=True)
class Algorithm:
    """One way of drafting. A speculator of the same name does it."""

    name: str
    needs_draft: bool  # a model that is loaded beside the target
    chains_only: bool
    chain_steps: int  # K unless one is given; a tree has its own
    fields: tuple[str, ...]  # of LaunchOptions: the flags that it reads


_EAGLE = Algorithm("EAGLE", needs_draft=True, chains_only=False, chain_steps=3, fields=(*OF_DRAFT, REJECTION, *_OF_ALL))
_NGRAM = Algorithm("NGRAM", needs_draft=False, chains_only=True, chain_steps=5, fields=(*OF_NGRAM, *_OF_ALL))
WITH_DRAFT = _EAGLE.name  # what "auto" comes to where there is a draft
ALGORITHMS = {algorithm.name: algorithm for algorithm in (_EAGLE, _NGRAM)}
FIELDS = tuple(dict.fromkeys(field for algorithm in ALGORITHMS.values() for field in algorithm.fields))


def read_algorithm(text: str) -> str:
    """The algorithm that `text` names in any case: "auto", NO_DRAFTS or one of ALGORITHMS.

    Raises ValueError with a sentence for all others.

    >>> read_algorithm("eagle"), read_algorithm("None")
    ('EAGLE', 'none')
    """
    known = {name.upper(): name for name in ("auto", NO_DRAFTS, *ALGORITHMS)}
    if (name := known.get(text.upper())) is not None:
        return name
    if (kind := _NOT_SERVED.get(text.upper())) is not None:
        raise ValueError(f"{kind} are not supported; choose EAGLE, which takes Mistral's EAGLE drafts, or NGRAM")
    raise ValueError(f"choose one of: {', '.join(known.values())}")
