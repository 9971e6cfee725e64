"""The ways of drafting by the name that --speculative-algorithm takes."""

from collections.abc import Callable

from slipstream.registry import Registry
from slipstream.speculative.base import BaseSpeculator
from slipstream.speculative.eagle import EagleSpeculator
from slipstream.speculative.ngram import NgramSpeculator
from slipstream.speculative.parts import SpeculatorParts

SPECULATORS: Registry[Callable[[SpeculatorParts], BaseSpeculator]] = Registry("speculative algorithm")
SPECULATORS.register("EAGLE")(EagleSpeculator)
SPECULATORS.register("NGRAM")(NgramSpeculator)
