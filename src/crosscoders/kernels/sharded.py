"""A backend whose latents are spread over processes: another backend computes, and sums over latents are completed."""

from __future__ import annotations

import torch

from crosscoders.kernels.interface import Backend, Reconstruction
from crosscoders.kernels.mesh import Mesh
from crosscoders.kernels.sparse_code import ByLatent, Code


class ShardedBackend:
    """The interface of one device over the processes of a mesh.

    Products and sums over the latents of one process are those of a backend of its device. The reconstruction alone is
    a sum over all latents, and takes one all-reduce.

    Parameters
    ----------
    local : Backend
        What computes on this process.
    mesh : Mesh
    """

    def __init__(self, local: Backend, mesh: Mesh):
        self.local, self.mesh = local, mesh

    def __getattr__(self, name: str):
        """Whatever concerns the latents of this process alone."""
        return getattr(self.local, name)

    def reconstruct(
        self,
        code: Code,
        by_latent: ByLatent,
        x: torch.Tensor,
        decoder: torch.Tensor,
        bias: torch.Tensor,
        weights: torch.Tensor,
    ) -> Reconstruction:
        """The error on x, (T, D), weighted by column, (D,), and its gradients; the mean is over all replicas' tokens."""
        partial = self.local.decode(code, decoder, torch.zeros_like(bias))
        error = x - (self.mesh.add(partial, "reconstruction") + bias)
        at_output = error * weights * (-2 / (len(x) * self.mesh.replicas))
        return Reconstruction(error, at_output, self.local.value_gradients(code, at_output, decoder))


def over_mesh(local: Backend, mesh: Mesh) -> Backend:
    """A backend over a mesh; the backend itself where one process is alone.

    Parameters
    ----------
    local : Backend
    mesh : Alone or Mesh

    Returns
    -------
    Backend
    """
    return local if mesh.alone else ShardedBackend(local, mesh)
