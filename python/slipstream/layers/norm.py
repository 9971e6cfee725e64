"""Root-mean-square norm."""

import torch
from torch import Tensor


class RMSNorm:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich, 2019), computed in fp32."""

    __slots__ = ("_eps_tensor", "_inverse_size", "_is_fused", "eps", "weight")

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight.float()
        self.eps = eps
        self._eps_tensor = torch.full((), eps, dtype=torch.float32, device=weight.device)
        self._inverse_size = 1 / weight.shape[-1]
        self._is_fused = weight.is_cuda

    def __call__(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D].

        On a CPU written out, because F.rms_norm takes up to a quarter longer: vector_norm reads x once in its own dtype
        and sums in fp32.
        """
        if self._is_fused:
            from slipstream.kernels.norm import add_rms_norm  # only where there is a GPU: it needs triton

            return add_rms_norm(None, x.reshape(-1, x.shape[-1]), self.weight, self.eps)[0].view(x.shape)
        norm = torch.linalg.vector_norm(x, 2, -1, True, dtype=torch.float32)
        scale = torch.addcmul(self._eps_tensor, norm, norm, value=self._inverse_size).rsqrt_()
        return (x * scale).mul_(self.weight).to(x.dtype)

    def add(self, delta: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm(residual + delta), residual + delta), all [T, D]; `residual` may be changed in place. Without a delta
        the residual is as it was.
        """
        if self._is_fused:
            from slipstream.kernels.norm import add_rms_norm

            return add_rms_norm(delta, residual, self.weight, self.eps)
        if delta is not None:
            residual = residual + delta
        return self(residual), residual
