"""The distribution of the next token under the sampling parameters, from their formulas in double precision."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from slipstream.messages.sampling import SamplingParams


def exact_distribution(
    params: SamplingParams, logits: Sequence[float], prompt: Sequence[int], answer: Sequence[int]
) -> list[float]:
    """Probabilities of the token after `prompt` and `answer`, whose logits are `logits`."""
    logits = list(logits)
    for token in {*prompt, *answer}:
        factor = params.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token, count in Counter(answer).items():
        logits[token] -= params.presence_penalty + count * params.frequency_penalty
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    if params.temperature == 0.0:
        return [float(token == logits.index(max(logits))) for token in range(len(logits))]
    weights = [math.exp(logit / params.temperature) for logit in logits]
    if len(answer) < params.min_new_tokens:
        for token in params.stop_token_ids:
            weights[token] = 0.0
    order = sorted(range(len(logits)), key=lambda token: -weights[token])
    if params.top_k:
        order = order[: params.top_k]
    total, before, nucleus = sum(weights[token] for token in order), 0.0, []
    for token in order:
        if before < params.top_p * total:
            nucleus.append(token)
        before += weights[token]
    kept = [token for token in nucleus if weights[token] >= params.min_p * weights[order[0]] and weights[token] > 0]
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(logits))]


def exact_joint(
    params: SamplingParams, logits_after: Callable[[Sequence[int]], Sequence[float]], prompt: Sequence[int]
) -> list[float]:
    """Probabilities of pairs (first token, second token) after `prompt`, number first * vocabulary + second.

    logits_after: the model's logits after these generated tokens.
    """
    pairs = []
    for token, prob in enumerate(exact_distribution(params, logits_after([]), prompt, [])):
        second = exact_distribution(params, logits_after([token]), prompt, [token])
        pairs += [prob * other for other in second]
    return pairs
