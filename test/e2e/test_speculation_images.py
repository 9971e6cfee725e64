"""Images and a draft: the draft's row before an image's tokens has the image's features as its next embedding, however
the prompt is cut; answers are those without a draft.
"""

import base64
import io
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from slipstream import Engine
from slipstream.config.drafting import DraftShape
from slipstream.config.processes import WorkerDrafts
from slipstream.hf_transformers.embedded import embedded_path
from slipstream.messages.images import ImageInput
from slipstream.messages.sampling import SamplingParams
from slipstream.messages.to_worker import NewRequest, PrefillChunk
from slipstream.speculative.draft_model import DraftModelSpeculator
from support.checkpoints import PARAMS, reference_model
from support.draft_checkpoints import write_copying_draft, write_draft
from support.draft_reference import DraftReference
from support.one_core import one_core
from support.running_worker import GREEDY, Driver, load_worker
from support.vision_checkpoints import (
    image_input,
    image_token_ids,
    pixel_values,
    random_pixels,
    vision_reference,
    write_native_vision,
)

PIXELS = [random_pixels(16, 24, seed=1), random_pixels(24, 8, seed=2)]
PAGES = list(range(1, 20))
DEPTH = 3
SHAPES = {"chain": DraftShape(DEPTH, 1, DEPTH), "tree": DraftShape(DEPTH, 3, 8)}
SAMPLED = SamplingParams(max_new_tokens=64, seed=4, temperature=0.8, top_p=0.95, repetition_penalty=1.1)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with one_core():
        yield


@dataclass(frozen=True)
class Pair:
    reference: Any  # the target in transformers
    target: Path
    copying: Path  # a draft that is right often
    random: Path  # a draft of which hidden states are a part


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder, reference = tmp_path_factory.mktemp("vision"), vision_reference()
    target = write_native_vision(folder / "target", reference)
    return Pair(
        reference,
        target,
        write_copying_draft(folder / "copying", target, noise=0.02),
        write_draft(folder / "random", PARAMS),
    )


def drafting_driver(pair: Pair, draft: Path, shape: DraftShape = SHAPES["chain"]) -> Driver:
    drafts = WorkerDrafts("EAGLE", shape, max_steps_in_flight=1, model_path=str(draft), load_format="auto")
    return Driver(load_worker(pair.target, drafts=drafts))


def prompt_of(pixels: Sequence[Tensor], seed: int = 0) -> tuple[list[int], list[ImageInput]]:
    """Text around each image; two images follow each other at once where there are two."""
    rng = random.Random(seed)
    tokens, inputs = [rng.randrange(20, 97) for _ in range(5)], []
    for image in pixels:
        inputs.append(image_input(image, len(tokens)))
        tokens += image_token_ids(image)
    return tokens + [rng.randrange(20, 97) for _ in range(4)], inputs


def prefill(driver: Driver, sampling: SamplingParams, ends: Sequence[int], *, warm: bool = True) -> list[int]:
    """The prompt in slot 0, in chunks that end at `ends` and at its own end; the first token."""
    tokens, inputs = prompt_of(PIXELS)
    new = [NewRequest(0, tokens, len(tokens), sampling, PAGES, 0, images=inputs, warm=warm)]
    begin = 0
    for end in [*ends, len(tokens)]:
        chunk = PrefillChunk(0, begin, end - begin, end == len(tokens))
        found = driver.step(new=new if begin == 0 else [], chunks=[chunk])[0].token_ids
        begin = end
    return list(found)


def answer(driver: Driver, sampling: SamplingParams, ends: Sequence[int], depth: int) -> tuple[list[int], int]:
    """The first 40 tokens, and how many drafts were accepted."""
    found, accepted = prefill(driver, sampling, ends, warm=depth > 0), 0
    while len(found) < 40:
        run = driver.step(decode=[0], draft_depths={0: depth} if depth else {})[0].token_ids
        found += run
        accepted += len(run) - 1
    return found[:40], accepted


def all_cuts() -> list[list[int]]:
    """One cut at every position around both images, and chunks of every small length."""
    tokens, inputs = prompt_of(PIXELS)
    last = inputs[-1].offset + inputs[-1].length
    return [[end] for end in range(inputs[0].offset - 2, last + 2)] + [
        [*range(length, len(tokens), length)] for length in (1, 2, 3, 5)
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_answers_about_images_are_the_same(pair: Pair, shape: str, sampling: SamplingParams) -> None:
    expected, _ = answer(Driver(load_worker(pair.target)), sampling, [], 0)
    driver, total = drafting_driver(pair, pair.copying, SHAPES[shape]), 0
    first = prompt_of(PIXELS)[1][0].offset
    for ends in [[], [first - 1], [first], [first, first + 1], *all_cuts()[:: 9 if shape == "tree" else 5]]:
        found, accepted = answer(driver, sampling, ends, DEPTH)
        assert found == expected, f"cut at {ends}"
        total += accepted
        driver.step(release=[0])
    assert total > 20, "hardly any draft was accepted: nothing was tested"


def speculator_of(driver: Driver) -> DraftModelSpeculator:
    drafting = driver.worker._speculation
    assert drafting is not None and isinstance(drafting._speculator, DraftModelSpeculator)
    return drafting._speculator


@torch.inference_mode()
def embedded_and_hidden(reference: Any, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """By transformers: what stands for each token of the prompt, and the hidden states after the final norm: [T, D]."""
    kept: list[Tensor] = []
    language = reference.model.language_model
    hook = language.register_forward_pre_hook(lambda *args: kept.append(args[-1]["inputs_embeds"][0]), with_kwargs=True)
    states = reference.model(torch.tensor([tokens]), **pixel_values(PIXELS)).last_hidden_state[0]
    hook.remove()
    return kept[0], states


@pytest.mark.parametrize("features", [True, False], ids=["features", "control: embeddings of the image token"])
def test_the_draft_sees_the_features_of_the_images(pair: Pair, features: bool) -> None:
    """Its kept output after every cut is that of its formulas over transformers' features and hidden states. Without
    features in their place, just as far from it as another image would be.
    """
    tokens, _ = prompt_of(PIXELS)
    x, hidden = embedded_and_hidden(pair.reference, tokens)
    if not features:
        x = pair.reference.get_input_embeddings()(torch.tensor(tokens)).detach()
    reference = DraftReference.read(pair.random)
    for ends in all_cuts():
        driver = drafting_driver(pair, pair.random)
        (first,) = prefill(driver, GREEDY, ends)
        with torch.inference_mode():
            last = pair.reference.get_input_embeddings()(torch.tensor([first]))
            expected = reference.forward(torch.cat((x[1:], last)), hidden)[-1]
        kept = speculator_of(driver).kept_of([0]).feedback_hidden[0].double()
        assert (float((kept - expected).abs().max()) < 1e-3) == features, f"cut at {ends}"


# ---- through the Engine: pages with images

VOCAB_SIZE = 3072


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("served")
    size: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 512}
    target = write_native_vision(
        folder / "target", vision_reference(reference_model(**size).config, seed=3), PARAMS | size
    )
    shutil.copy(embedded_path() / "tekken.json", target / "tekken.json")
    return str(target), str(write_copying_draft(folder / "draft", target, noise=0.02))


def chat(*seeds: int) -> list[dict[str, Any]]:
    """Text, then pictures without text between them."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": "What is to be seen here?"}]
    parts += [{"type": "image_url", "image_url": {"url": picture(seed)}} for seed in seeds]
    return [{"role": "user", "content": parts}]


def picture(seed: int) -> str:
    """A data URL; the sides are whole merged patches, so that nothing is resized."""
    buffer = io.BytesIO()
    Image.fromarray(random_pixels(24, 40, seed).numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(("page_size", "chunk"), [(1, 512), (4, 7)])
def test_pages_before_an_image_are_shared_by_those_alone_who_have_it(
    served: tuple[str, str], page_size: int, chunk: int
) -> None:
    """The draft's KV of the row before an image depends on the image: after a prompt with another one, acceptance and
    answers are those of an empty cache.
    """
    target, draft = served
    values = {"temperature": 0, "max_new_tokens": 32, "ignore_eos": True}
    options: dict[str, Any] = {"dtype": "float32", "page_size": page_size, "chunked_prefill_size": chunk}
    asked = [chat(1, 2), chat(1, 3), chat(4), chat(1, 2)]
    with Engine(target, speculative_algorithm="none", **options) as engine:
        expected = engine.generate(asked, values)
    options |= {"speculative_draft_model_path": draft, "speculative_adaptive": "off"}
    with Engine(target, **options) as engine:
        fresh, after = [], []
        for prompt in asked:
            engine.flush_cache()
            fresh += engine.generate(prompt, values)
        engine.flush_cache()
        for prompt in asked:
            after += engine.generate(prompt, values)
    for one, two, wanted in zip(fresh, after, expected, strict=True):
        assert one.token_ids == two.token_ids == wanted.token_ids
        assert one.drafts == two.drafts and one.drafts is not None
    assert sum(answer.drafts.num_accepted for answer in after if answer.drafts is not None) > 10
    assert after[1].num_cached > 0 and after[3].num_cached >= after[3].prompt_len - 2 * page_size
    assert after[1].num_cached < after[3].num_cached
