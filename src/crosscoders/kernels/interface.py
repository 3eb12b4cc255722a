"""What every backend offers: the products and sums of a training step.

T tokens, m latents, D columns (the widths of all sources together). A backend is chosen once, by
:func:`crosscoders.kernels.backends.choose`; what uses it does not ask which machine it runs on.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from crosscoders.kernels.adam_step import AdamNumbers
from crosscoders.kernels.mesh import Alone
from crosscoders.kernels.sparse_code import ByLatent, Code


class StoredLater(Protocol):
    """A weight gradient, (m, D), that a backend has not, or not completely, stored as a tensor."""

    def dense(self) -> torch.Tensor:
        """The gradient as a tensor, (m, D)."""

    def squared_norm(self) -> torch.Tensor:
        """The sum of its squares, a scalar."""


Gradient = torch.Tensor | StoredLater


class Pairs(NamedTuple):
    """Pairs of token and latent, ascending.

    Attributes
    ----------
    index : (pairs,) int64
        token · m + latent.
    values : (pairs,)
        Pre-activations.
    """

    index: torch.Tensor
    values: torch.Tensor


class Reconstruction(NamedTuple):
    """A reconstruction x̂ and the gradients of its weighted mean square error.

    Attributes
    ----------
    error : (T, D)
        x − x̂.
    at_output : (T, D)
        Gradient at x̂.
    at_values : (pairs,) or (T, m)
        Gradient at the values of the code.
    """

    error: torch.Tensor
    at_output: torch.Tensor
    at_values: torch.Tensor


class Backend(Protocol):
    """Kernels over a sparse code, and products of matrices.

    Attributes
    ----------
    kernels, products : str
        What works on sparse codes, and what multiplies matrices; artifacts record both.
    dense_above : float
        Density of a code above which dense products cost less than gathered rows; measured.
    mesh : Alone or Mesh
        The processes that share latents and tokens.
    rows_at_once : int, optional
        Latents whose weights are on the device at a time; None where all are.
    """

    mesh: Alone
    rows_at_once: int | None
    kernels: str
    products: str
    dense_above: float

    def linear(self, x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The product x Wᵀ + b, (T, n), of (T, k), (n, k) and (n,)."""

    def product(self, a: torch.Tensor, b: torch.Tensor, precision: torch.dtype | None) -> torch.Tensor:
        """The product a b, (T, n), of (T, k) and (k, n), rounded to a precision beforehand where one is given."""

    def candidates(
        self, x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor, threshold: torch.Tensor
    ) -> Pairs | None:
        """Pairs whose pre-activation exceeds the threshold of its latent, (m,); None where all of them cost less."""

    def decode(self, code: Code, decoder: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The reconstruction Σ_j f_j W_j + b, (T, D)."""

    def value_gradients(self, code: Code, gradient: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
        """⟨gradient_t, W_j⟩ at every pair, (pairs,)."""

    def reconstruct(
        self,
        code: Code,
        by_latent: ByLatent,
        x: torch.Tensor,
        decoder: torch.Tensor,
        bias: torch.Tensor,
        weights: torch.Tensor,
    ) -> Reconstruction:
        """The error on x, (T, D), weighted by column, (D,), and its gradients."""

    def rounded(self, matrix: torch.Tensor, precision: torch.dtype | None) -> torch.Tensor:
        """A matrix, (m, D), whose numbers are rounded to a precision, in the type that `reconstruct` takes."""

    def weight_gradient(self, by_latent: ByLatent, values: torch.Tensor, rows: torch.Tensor) -> Gradient:
        """Σ_t value_tj rows_t, (m, D), of values in the order of the code."""

    def adam_step(
        self,
        weights: torch.Tensor,
        moments: tuple[torch.Tensor, torch.Tensor],
        gradient: Gradient,
        seed: int,
        numbers: AdamNumbers,
    ) -> None:
        """One step of Adam in place on (m, D) weights; both moments are in the weights' precision or in bfloat16."""
