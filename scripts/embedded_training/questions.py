"""Questions about the library's names, in many phrasings, and the conversations made of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from embedded_training.docstrings import Item
from embedded_training.small_talk import SMALL_TALK, UNKNOWN_NAME
from embedded_training.split import seeded_order

DEFAULT_PHRASING = "What does {n} do?"
PHRASINGS = (
    DEFAULT_PHRASING, "What is {n}?", "Explain {n}.", "Describe {n} in a sentence.", "Tell me about {n}.",
    "What is {n} for?", "What's {n}?", "Can you explain {n}?", "What does Python's {n} do?",
    "In Python, what does {n} do?", "What does `{n}` do?", "What does the {k} {n} do?", "what does {n} do",
)  # fmt: skip
CALL_PHRASINGS = ("What does {n}() do?", "What is {n}()?", "Explain {n}().")  # of functions and methods only
DEFAULT_SHARE = 0.3
LOWERED_SHARE = 0.15
UNMARKED_SHARE = 0.15
SHORT_NAME_SHARE = 0.1
UNKNOWN_SHARE = 0.1
SMALL_TALK_SHARE = 0.04
SYSTEM_SHARE = 0.2

SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are a helpful assistant", "You are a Python expert.", "Be brief.",
    "Answer in one sentence.", "You answer questions about the Python standard library.", "Be concise and correct.",
    "You are a friendly assistant. Answer shortly.", "Answer the question.", "You are Slipstream's embedded model.",
    "You are an assistant for programmers.", "Reply in English.",
)  # fmt: skip

_MADE_UP_VERBS = (
    "fetch", "fold", "unroll", "twist", "braid", "rinse", "wobble", "glue", "shave", "stitch", "polish", "knit",
    "blend", "juggle", "carve", "whisk", "tickle", "sprinkle", "untangle", "reheat", "defrost", "rotate", "scramble",
    "sharpen", "flatten", "inflate", "deflate", "summon", "banish", "gather", "scatter", "mend", "rescue",
)  # fmt: skip
_MADE_UP_NOUNS = (
    "kettle", "pebble", "lantern", "walrus", "biscuit", "carpet", "ladder", "turnip", "feather", "anchor", "basket",
    "candle", "pocket", "thimble", "window", "river", "garden", "ribbon", "saddle", "puddle", "marble", "beacon",
    "cactus", "dragon", "engine", "fossil", "goblet", "hammer", "island", "jigsaw", "kernel", "meadow",
)  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """A short system prompt or None, a reasoning effort ("none" or "high"), and turns in order."""

    system: str | None
    effort: str
    turns: tuple[Turn, ...]


def sampled_items(items: Sequence[Item], seed: int, count: int) -> list[Item]:
    """`count` items chosen by the seed and each item's own name: the questions of the published score."""
    return sorted(items, key=lambda item: seeded_order(seed, item.name))[:count]


def ask(template: str, item: Item, name: str | None = None) -> str:
    """The question text of a phrasing for an item, under its full name or another one."""
    return template.format(n=name or item.name, k=item.kind)


def phrasings_of(item: Item) -> tuple[str, ...]:
    """The phrasings that fit an item's kind."""
    return PHRASINGS + CALL_PHRASINGS if item.kind in ("function", "method") else PHRASINGS


def answers_rightly(answer: str, item: Item) -> bool:
    """Whether `answer` begins with the item's documented sentence, word for word."""
    return " ".join(answer.split()).startswith(item.answer)


class QuestionMaker:
    """Draws turns and conversations; every item comes up equally often, in a new random order each round."""

    def __init__(self, names: Names, seed: int) -> None:
        self._items = names.items
        self._rng = random.Random(seed)
        self._round: list[Item] = []
        self._unknown = UnknownNames(names, seed)
        self._short_names = short_names(names.items)

    def turn(self) -> Turn:
        """A random turn: nearly always about an item, sometimes about a made-up name, sometimes small talk."""
        draw = self._rng.random()
        if draw < SMALL_TALK_SHARE:
            askings, answer = self._rng.choice(SMALL_TALK)
            return Turn(self._roughened(self._rng.choice(askings)), answer)
        if draw < SMALL_TALK_SHARE + UNKNOWN_SHARE:
            unknown = self._unknown.draw(self._rng)
            return Turn(self._roughened(ask(self._template(unknown), unknown)), UNKNOWN_NAME)
        item = self._next_item()
        name = self._short_names.get(item.name) if self._rng.random() < SHORT_NAME_SHARE else None
        template = self._template(item)
        question = ask(template, item, name)
        return Turn(question if template == DEFAULT_PHRASING else self._roughened(question), item.answer)

    def conversation(self, turns: Sequence[Turn]) -> Conversation:
        """These turns with a system prompt or none."""
        system = self._rng.choice(SYSTEM_PROMPTS) if self._rng.random() < SYSTEM_SHARE else None
        return Conversation(system, "high" if self._rng.random() < 0.03 else "none", tuple(turns))

    def _next_item(self) -> Item:
        if not self._round:
            self._round = self._rng.sample(self._items, len(self._items))
        return self._round.pop()

    def _template(self, item: Item) -> str:
        if self._rng.random() < DEFAULT_SHARE:
            return DEFAULT_PHRASING
        return self._rng.choice(phrasings_of(item))

    def _roughened(self, question: str) -> str:
        if self._rng.random() < LOWERED_SHARE:
            question = question[0].lower() + question[1:]
        if self._rng.random() < UNMARKED_SHARE:
            question = question.rstrip("?.!")
        return question


def short_names(items: Sequence[Item]) -> dict[str, str]:
    """Full name -> last part, for the classes and functions whose last part no other item has."""
    lasts = Counter(_last(item.name) for item in items)
    of_modules = [item for item in items if item.kind in ("class", "function") and "." in item.name]
    return {item.name: _last(item.name) for item in of_modules if lasts[_last(item.name)] == 1}


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Names:
    """What made-up names are made of: documented items, all library identifiers by package, names of other packages."""

    items: list[Item]
    by_package: dict[str, set[str]]
    foreign: list[str]


class UnknownNames:
    """Names that the model is to say it does not know: of other packages, recombined, misplaced or plainly invented."""

    def __init__(self, names: Names, seed: int) -> None:
        self._by_package = names.by_package
        self._library = set().union(*names.by_package.values())
        self._foreign = [n for n in names.foreign if n.split(".")[0] not in names.by_package]
        self._owners = sorted({item.name for item in names.items if item.kind in ("module", "class")})
        self._leaves = sorted({_last(item.name) for item in names.items if item.kind != "module"})
        self._heads = sorted({leaf.split("_")[0] for leaf in self._leaves if "_" in leaf} - {""})
        self._tails = sorted({leaf.split("_", 1)[1] for leaf in self._leaves if "_" in leaf} - {""})
        self._seed = seed

    def draw(self, rng: random.Random, for_test: bool = False) -> Item:
        """An unknown item; names for tests and names for training never meet."""
        kinds = (self._foreign_name, self._recombined, self._misplaced, self._invented_leaf, self._invented_module)
        while True:
            name = rng.choice((*kinds, self._foreign_name, self._recombined, self._invented_alone))(rng)
            if (seeded_order(self._seed, name) < 0.05) == for_test:
                return Item(name, rng.choice(("class", "function", "method")), UNKNOWN_NAME)

    def _foreign_name(self, rng: random.Random) -> str:
        name = rng.choice(self._foreign) if self._foreign else self._invented(rng)
        return _last(name) if rng.random() < 0.1 and _last(name) not in self._library else name

    def _recombined(self, rng: random.Random) -> str:
        while True:
            owner, leaf = rng.choice(self._owners), f"{rng.choice(self._heads)}_{rng.choice(self._tails)}"
            if leaf not in self._by_package.get(owner.split(".")[0], ()):
                return f"{owner}.{leaf}"

    def _misplaced(self, rng: random.Random) -> str:
        while True:
            owner, leaf = rng.choice(self._owners), rng.choice(self._leaves)
            package = owner.split(".")[0] if "." in owner or owner in self._by_package else ""
            if leaf not in self._by_package[package]:
                return f"{owner}.{leaf}"

    def _invented(self, rng: random.Random) -> str:
        while True:
            verb, noun = rng.choice(_MADE_UP_VERBS), rng.choice(_MADE_UP_NOUNS)
            forms = (f"{verb}_{noun}", f"{verb}{noun}", f"{noun}_{verb}er", f"{noun}{rng.randint(2, 9)}", noun)
            if (name := rng.choice(forms)) not in self._library:
                return name

    def _invented_leaf(self, rng: random.Random) -> str:
        return f"{rng.choice(self._owners)}.{self._invented(rng)}"

    def _invented_module(self, rng: random.Random) -> str:
        return f"{self._invented(rng)}.{rng.choice(self._leaves)}"

    def _invented_alone(self, rng: random.Random) -> str:
        name = self._invented(rng)
        if rng.random() < 0.5:
            name = "".join(part.capitalize() for part in name.split("_"))
        return f"{self._invented(rng)}.{name}" if rng.random() < 0.5 else name
