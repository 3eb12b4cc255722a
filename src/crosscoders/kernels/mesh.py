"""The processes that train one dictionary together: a mesh of latent shards times data replicas.

Every process has a share of the latents (its shard) and, at each step, a share of the batch's tokens (its replica's).
What one process cannot know alone, a method of the mesh adds up or gathers. For one process, :class:`Alone`, the same
methods give back what they got, so that code written for a mesh costs one process nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from crosscoders.errors import UserError, shortened

Value = TypeVar("Value")


class Alone:
    """One process, which has all latents and all tokens.

    Attributes
    ----------
    ranks, replicas : int
        Processes that share the latents, and groups of such processes that share the tokens.
    rank, replica : int
        The process's place among either.
    own : (m of the process,) int64, optional
        The latents that the process has, ascending; None where it has all.
    latents : int
        Latents of the whole dictionary; 0 where the process has all.
    sent : Counter
        Bytes that the process handed to collectives, by purpose.
    """

    ranks = replicas = 1
    rank = replica = 0
    own: torch.Tensor | None = None
    latents = 0

    def __init__(self):
        self.sent: Counter[str] = Counter()

    @property
    def alone(self) -> bool:
        """Whether there is one process."""
        return self.ranks * self.replicas == 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == self.replica == 0

    def owning(self, groups: list[int]) -> Alone:
        """The mesh with latents dealt out: every process has its part of every group of latents, of the given sizes."""
        return self

    def add(self, partial: torch.Tensor, purpose: str) -> torch.Tensor:
        """The sum over latent shards of a tensor; it may be taken in place."""
        return partial

    def add_tokens(self, partial: torch.Tensor, purpose: str) -> torch.Tensor:
        """The sum over data replicas of a tensor; it may be taken in place."""
        return partial

    def add_all(self, partial: torch.Tensor, purpose: str) -> torch.Tensor:
        """The sum over all processes of a tensor; it may be taken in place."""
        return partial

    def count(self, number: int, purpose: str) -> int:
        """The sum over all processes of a number."""
        return number

    def columns(self, values: torch.Tensor, purpose: str) -> torch.Tensor:
        """Tensors, (n, c), of all latent shards side by side, (n, ranks · c)."""
        return values

    def tokens_before(self, tokens: int) -> int:
        """Tokens of the batch that earlier replicas have, where every replica has `tokens` of them."""
        return self.replica * tokens

    def gather(self, own: torch.Tensor, axis: int, latents: torch.Tensor | None = None) -> torch.Tensor | None:
        """A tensor over all latents, on the CPU of the first process, from every shard's; None elsewhere."""
        return own

    def scatter(self, whole: torch.Tensor | None, own: torch.Tensor, axis: int | None, latents=None) -> None:
        """Fill every process's tensor from the first one's, over all latents; the inverse of :meth:`gather`."""
        own.copy_(whole)

    def of_shards(self, value: Value) -> list[Value]:
        """What the processes of this replica hold, by rank."""
        return [value]

    def told(self, value: Value) -> Value:
        """What the first process holds."""
        return value


class Mesh(Alone):
    """Several processes, connected by torch.distributed.

    Parameters
    ----------
    ranks, replicas : int
        Their product is the number of processes. Those of one replica follow one another.
    device : {"cpu", "cuda"}
        Where the tensors lie that are added up during steps.
    """

    def __init__(self, ranks: int, replicas: int, device: str = "cpu"):
        super().__init__()
        self.ranks, self.replicas, self.device = ranks, replicas, device
        self.replica, self.rank = divmod(dist.get_rank(), ranks)
        made = init_device_mesh(device, (replicas, ranks), mesh_dim_names=("replica", "rank"))
        self._shards, self._replicas = made.get_group("rank"), made.get_group("replica")

    def owning(self, groups: list[int]) -> Mesh:
        """The mesh with latents dealt out: every process has its part of every group of latents, of the given sizes.

        Raises
        ------
        UserError
            A group has fewer latents than there are ranks.
        """
        if min(groups) < self.ranks:
            raise UserError(
                f"training.ranks: {self.ranks}; expected at most the smallest group's {min(groups)} latents"
            )
        self.latents, self.own = sum(groups), dealt(groups, self.ranks, self.rank)
        return self

    def add(self, partial: torch.Tensor, purpose: str) -> torch.Tensor:
        """The sum over latent shards of a tensor; it may be taken in place."""
        return self._add(partial, self._shards, self.ranks, purpose)

    def add_tokens(self, partial: torch.Tensor, purpose: str) -> torch.Tensor:
        """The sum over data replicas of a tensor; it may be taken in place."""
        return self._add(partial, self._replicas, self.replicas, purpose)

    def add_all(self, partial: torch.Tensor, purpose: str) -> torch.Tensor:
        """The sum over all processes of a tensor; it may be taken in place."""
        return self._add(partial, None, self.ranks * self.replicas, purpose)

    def _add(self, partial: torch.Tensor, group: dist.ProcessGroup | None, size: int, purpose: str) -> torch.Tensor:
        if size == 1:
            return partial
        partial = partial.contiguous()
        self.sent[purpose] += partial.nbytes
        _together(lambda: dist.all_reduce(partial, group=group))
        return partial

    def count(self, number: int, purpose: str) -> int:
        """The sum over all processes of a number."""
        return int(self.add_all(torch.tensor([number], device=self.device), purpose))

    def columns(self, values: torch.Tensor, purpose: str) -> torch.Tensor:
        """Tensors, (n, c), of all latent shards side by side, (n, ranks · c)."""
        if self.ranks == 1:
            return values
        values = values.contiguous()
        self.sent[purpose] += values.nbytes
        parts = [torch.empty_like(values) for _ in range(self.ranks)]
        _together(lambda: dist.all_gather(parts, values, group=self._shards))
        return torch.cat(parts, dim=1)

    def gather(self, own: torch.Tensor, axis: int, latents: torch.Tensor | None = None) -> torch.Tensor | None:
        """A tensor over all latents, on the CPU of the first process, from every shard's; None elsewhere.

        Parameters
        ----------
        own : tensor
            Of this process's latents along `axis`.
        axis : int
        latents : (m of the process,), optional
            The latents, ascending; those of the process where absent.
        """
        held = self._held(latents)
        if self.replica > 0:
            return None
        own = own.detach().cpu().movedim(axis, 0).contiguous()
        if self.rank > 0:
            _together(lambda: dist.send(_bytes(own), 0))
            return None
        first, total = _span(held)
        whole = own.new_empty(total, *own.shape[1:])
        whole[held[0] - first] = own
        for rank in range(1, self.ranks):
            part = own.new_empty(len(held[rank]), *own.shape[1:])
            _together(lambda part=part, rank=rank: dist.recv(_bytes(part), rank))
            whole[held[rank] - first] = part
        return whole.movedim(0, axis).contiguous()

    def scatter(self, whole: torch.Tensor | None, own: torch.Tensor, axis: int | None, latents=None) -> None:
        """Fill every process's tensor from the first one's, over all latents; the inverse of :meth:`gather`.

        Parameters
        ----------
        whole : tensor
            Of all latents along `axis`; read on the first process alone.
        own : tensor
            Of this process's latents.
        axis : int, optional
            None where every process gets the whole tensor.
        latents : (m of the process,), optional
            The latents, ascending; those of the process where absent.
        """
        held = self._held(latents) if axis is not None else []
        first = _span(held)[0] if held else 0

        def share(rank: int) -> torch.Tensor:
            rows = whole.movedim(axis, 0)[held[rank] - first] if held else whole
            return rows.cpu().to(own.dtype).contiguous()

        if self.first:
            for place in range(1, self.ranks * self.replicas):
                _together(lambda place=place: dist.send(_bytes(share(place % self.ranks)), place))
            part = share(0)
        else:
            target = own if axis is None else own.movedim(axis, 0)
            part = torch.empty(target.shape, dtype=own.dtype)
            _together(lambda: dist.recv(_bytes(part), 0))
        own.copy_(part if axis is None else part.movedim(0, axis))

    def _held(self, latents: torch.Tensor | None) -> list[torch.Tensor]:
        """The latents that each shard has of a part of the dictionary."""
        return self.of_shards(self.own if latents is None else latents)

    def of_shards(self, value: Value) -> list[Value]:
        """What the processes of this replica hold, by rank."""
        held: list[Value] = [value] * (self.ranks * self.replicas)
        _together(lambda: dist.all_gather_object(held, value))
        return held[self.replica * self.ranks :][: self.ranks]

    def told(self, value: Value) -> Value:
        """What the first process holds."""
        holder = [value]
        _together(lambda: dist.broadcast_object_list(holder, src=0))
        return holder[0]


ALONE = Alone()


def dealt(groups: list[int], ranks: int, rank: int) -> torch.Tensor:
    """The latents of one rank: its part of every group of latents; parts of a group differ by at most one latent.

    Parameters
    ----------
    groups : list of int
        Sizes of consecutive groups.
    ranks, rank : int

    Returns
    -------
    (latents of the rank,) int64
        Ascending.
    """
    parts, first = [], 0
    for size in groups:
        parts.append(torch.arange(first + rank * size // ranks, first + (rank + 1) * size // ranks))
        first += size
    return torch.cat(parts)


def _span(held: list[torch.Tensor]) -> tuple[int, int]:
    """The first of the latents that shards have, and their number."""
    return min(int(latents[0]) for latents in held), sum(map(len, held))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as bytes, which every collective takes."""
    return tensor.reshape(-1).view(torch.uint8)


def _together(collective: Callable[[], object]) -> None:
    """Run a collective; where it fails, another process has ended, and that one says why.

    Raises
    ------
    UserError
        The collective failed.
    """
    try:
        collective()
    except RuntimeError as error:
        reason = shortened(str(error).splitlines()[0])
        raise UserError(f"another process of this training has ended ({reason})") from error
