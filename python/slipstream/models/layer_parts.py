"""Builds the parts of one decoder layer from its parameters."""

from slipstream.layers.dense import LinearLayer
from slipstream.layers.feed_forward import SwiGLU
from slipstream.layers.linear import make_linear
from slipstream.layers.norm import RMSNorm
from slipstream.layers.normed import Normed, NormedPart
from slipstream.weights.parameters import Parameters


class LayerParts:
    """The parts of layer `index`, each to be taken once. `eps` is that of its norms, `prefix` begins its names."""

    def __init__(self, parameters: Parameters, index: int, eps: float, prefix: str = "layers.") -> None:
        self.parameters = parameters
        self.index = index
        self._eps = eps
        self._prefix = prefix

    def name(self, name: str) -> str:
        """Of a parameter of this layer."""
        return f"{self._prefix}{self.index}.{name}"

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self.parameters.tensor(self.name(name)), self._eps)

    def linear(self, name: str) -> LinearLayer:
        return make_linear(self.parameters.matrix(self.name(name)))

    def normed_linear(self, norm: str, linear: str) -> NormedPart:
        """The matrix `linear` behind the norm `norm`."""
        matrix = self.parameters.matrix(self.name(linear))
        if matrix.weight.is_cuda and matrix.weight_scale is None:
            from slipstream.layers.skinny import NormedSkinnyLinear  # only where there is a GPU: it needs triton

            return NormedSkinnyLinear(self.norm(norm), matrix.weight)
        return Normed(self.norm(norm), make_linear(matrix))

    def normed_swiglu(self, norm: str) -> NormedPart:
        """The matrices gate_up and down behind the norm `norm`."""
        gate_up, down = (self.parameters.matrix(self.name(name)) for name in ("gate_up", "down"))
        if gate_up.weight.is_cuda and gate_up.weight_scale is None and down.weight_scale is None:
            from slipstream.layers.skinny import NormedSkinnySwiGLU

            return NormedSkinnySwiGLU(self.norm(norm), gate_up.weight, down.weight)
        return Normed(self.norm(norm), SwiGLU(gate_up, down))

    def swiglu(self, prefix: str = "") -> SwiGLU:
        """Of the matrices `prefix`gate_up and `prefix`down."""
        gate_up, down = (self.parameters.matrix(self.name(prefix + name)) for name in ("gate_up", "down"))
        return SwiGLU(gate_up, down)

    def experts(self, num_experts: int) -> list[SwiGLU]:
        """Of experts_gate_up and experts_down, which are [experts, out, in]."""
        gate_up, down = (self.parameters.matrix(self.name(f"experts_{name}")) for name in ("gate_up", "down"))
        return [SwiGLU(gate_up.expert(expert), down.expert(expert)) for expert in range(num_experts)]
