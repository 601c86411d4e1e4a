"""Head-restricted LoRA: low-rank updates that touch the rows (q, k, v) or columns (o) of some heads only.

Head h owns output rows [hD, (h+1)D) of the q, k and v projections and the same input columns of o. An adapter
stores only what can be non-zero; base weights and biases stay whole. H heads, D head dim, d = H D, n active
heads of a layer, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily


class Update(NamedTuple):
    """What the kernels take for one layer: scale * lora_b @ lora_a on the rows or columns of `heads`."""

    heads: Tensor  # (n,) int64, sorted
    lora_a: dict[str, Tensor]  # by projection: q, k, v (r, d); o (r, n D)
    lora_b: dict[str, Tensor]  # by projection: q, k, v (n D, r); o (d, r)
    scale: float
    folded: Mapping[str, Tensor] = {}  # by projection: what adapters add to the base weight, (d, d)


class LoraPair(nn.Module):
    """A and B of one projection. A Kaiming-uniform, B zero: a new adapter changes nothing."""

    def __init__(self, d_in: int, d_out: int, rank: int, generator: torch.Generator | None) -> None:
        super().__init__()
        bound = 1 / math.sqrt(d_in)  # kaiming_uniform with a = sqrt(5), as PEFT starts
        start = torch.rand(rank, d_in, generator=generator) * (2 * bound) - bound
        self.lora_A = nn.Parameter(start)
        self.lora_B = nn.Parameter(torch.zeros(d_out, rank))


class HeadLora(nn.Module):
    """One adapter over all layers, fp32. heads: per layer the (n,) sorted head numbers, possibly none.

    targets: the projections, "qkvo" or "qkv". State dict keys: blocks.N.{q,k,v,o}.lora_{A,B}; a layer without
    heads has none.
    """

    def __init__(
        self,
        heads: Sequence[Tensor | Sequence[int]],
        *,
        num_heads: int,
        head_dim: int,
        rank: int,
        alpha: float,
        targets: str = "qkvo",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.heads = [torch.as_tensor(h, dtype=torch.int64, device="cpu").unique() for h in heads]
        for layer, active in enumerate(self.heads):
            if len(active) and not 0 <= int(active[0]) <= int(active[-1]) < num_heads:
                raise ValueError(
                    f"heads of layer {layer} are {active.tolist()}; allowed: 0 to {num_heads - 1}"
                )
        if targets not in ("qkv", "qkvo"):
            raise ValueError(f'targets is "{targets}"; allowed: "qkv", "qkvo"')
        self.num_heads, self.head_dim = num_heads, head_dim
        self.rank, self.alpha, self.targets = rank, alpha, targets
        self.blocks = nn.ModuleDict()
        d = num_heads * head_dim
        for layer, active in enumerate(self.heads):
            if len(active):
                rows = len(active) * head_dim
                self.blocks[str(layer)] = nn.ModuleDict(
                    {
                        p: LoraPair(rows if p == "o" else d, d if p == "o" else rows, rank, generator)
                        for p in targets
                    }
                )

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def layer(self, number: int) -> dict[str, LoraPair]:
        """The pairs of one layer by projection; empty where it has no heads."""
        name = str(number)
        if name not in self.blocks:
            return {}
        pairs = self.blocks[name]
        return {p: pairs[p] for p in self.targets}  # type: ignore[index, misc]

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def rows(self, layer: int) -> Tensor:
        """(n D,) rows of q, k, v (columns of o) that the heads of a layer own."""
        return (self.heads[layer][:, None] * self.head_dim + torch.arange(self.head_dim)).flatten()

    def ranks(self, start: int, stop: int) -> HeadLora:
        """A frozen copy of some of the ranks, scaled as they are here."""
        part = HeadLora(
            self.heads,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            rank=stop - start,
            alpha=self.scaling * (stop - start),
            targets=self.targets,
        )
        for name, tensor in self.state_dict().items():
            part.get_parameter(name).data = (
                tensor[start:stop] if name.endswith("lora_A") else tensor[:, start:stop]
            ).clone()
        return part.requires_grad_(False)

    def to_full(self) -> dict[str, Tensor]:
        """The adapter as an ordinary LoRA with its zeros: blocks.N.q.lora_A (r, d), .lora_B (d, r), ..."""
        full = {}
        d = self.num_heads * self.head_dim
        for layer in range(len(self.heads)):
            rows = self.rows(layer)
            for p, pair in self.layer(layer).items():
                a, b = pair.lora_A.detach().cpu(), pair.lora_B.detach().cpu()
                if p == "o":
                    a = a.new_zeros(self.rank, d).index_copy(1, rows, a)
                else:
                    b = b.new_zeros(d, self.rank).index_copy(0, rows, b)
                full[f"blocks.{layer}.{p}.lora_A"] = a
                full[f"blocks.{layer}.{p}.lora_B"] = b
        return full

    def load_full(self, full: Mapping[str, Tensor]) -> None:
        """The reverse of `to_full`. ValueError: a projection is missing, or other heads' rows not zero."""
        for layer in range(len(self.heads)):
            rows = self.rows(layer)
            for p, pair in self.layer(layer).items():
                name = f"blocks.{layer}.{p}"
                if f"{name}.lora_A" not in full or f"{name}.lora_B" not in full:
                    raise ValueError(f"{name} is missing")
                a, b = full[f"{name}.lora_A"].float(), full[f"{name}.lora_B"].float()
                compact = (a[:, rows], b) if p == "o" else (a, b[rows])
                whole, part = (a, compact[0]) if p == "o" else (b, compact[1])
                if int(whole.count_nonzero()) != int(part.count_nonzero()):
                    raise ValueError(f"{name} changes heads that are not in its head map")
                with torch.no_grad():
                    pair.lora_A.copy_(compact[0])
                    pair.lora_B.copy_(compact[1])


class AdapterStack:
    """Several adapters at once, each with its own strength, as one low-rank update per layer.

    A's are stacked along the rank; in the stacked B (A for o) the rows of an adapter's heads see its own rank
    columns only, so adapters never mix. What is frozen when the stack is made is laid out once; trainable
    adapters are added to it at every call.

    fold: where an adapter trains, add the frozen ones to the base weights instead of stacking ranks. That is
    less work, and for float32 weights only: in fewer bits small updates would be rounded away.
    """

    def __init__(self, adapters: Sequence[tuple[HeadLora, float]] = (), *, fold: bool = False) -> None:
        self.adapters = [(adapter, scale) for adapter, scale in adapters if scale != 0]
        self._layouts: dict[tuple[int, str], _Layout] = {}
        for layer in range(max((len(adapter.heads) for adapter, _ in self.adapters), default=0)):
            for projections in ("qkv", "o"):
                present = [
                    (adapter, scale)
                    for adapter, scale in self.adapters
                    if projections[0] in adapter.targets and len(adapter.heads[layer])
                ]
                if present:
                    self._layouts[layer, projections] = _Layout(layer, projections, present, fold)

    def qkv(self, layer: int) -> Update | None:
        """The update of the three input projections of a layer; None where no adapter has heads."""
        return self._update(layer, "qkv")

    def out(self, layer: int) -> Update | None:
        """The update of the output projection of a layer; None where no adapter has heads or targets it."""
        return self._update(layer, "o")

    def _update(self, layer: int, projections: str) -> Update | None:
        layout = self._layouts.get((layer, projections))
        return layout.update() if layout is not None else None


class _Member(NamedTuple):
    """A trainable adapter's place: `rows` of the union of heads, `pad` zeros before and after its ranks."""

    pairs: dict[str, LoraPair]
    factor: float
    rows: Tensor
    pad: tuple[int, int]


class _Layout:
    """The update of one layer: the part of frozen adapters, and where trainable ones are put into it."""

    def __init__(
        self, layer: int, projections: str, present: list[tuple[HeadLora, float]], fold: bool
    ) -> None:
        self.projections, device = projections, present[0][0].device
        frozen = [pair for pair in present if not _trains(pair[0])]
        trained = [pair for pair in present if _trains(pair[0])]
        self.folded: dict[str, Tensor] = {}
        if fold and frozen and trained:
            self.folded = {p: _product(p, layer, frozen) for p in projections}
            frozen = []
        with unset_fake_temporarily():  # which heads act is a value, also where all else is shapes
            union = torch.cat([adapter.heads[layer] for adapter, _ in frozen + trained]).unique()
            self.heads = union.to(device)
        self.rank = sum(adapter.rank for adapter, _ in frozen + trained)
        dim = present[0][0].head_dim
        self.trained: list[_Member] = []
        self.still_a: dict[str, list[Tensor]] = {p: [] for p in projections}
        self.still_b: dict[str, list[Tensor]] = {p: [] for p in projections}
        self.masked = {p: torch.zeros(self._shape(p, len(union) * dim), device=device) for p in projections}
        done = 0
        for adapter, scale in frozen + trained:  # frozen ranks first
            slots = torch.searchsorted(union, adapter.heads[layer])
            rows = (slots[:, None] * dim + torch.arange(dim)).flatten().to(device)
            pad = (done, self.rank - done - adapter.rank)
            done += adapter.rank
            member = _Member(adapter.layer(layer), scale * adapter.scaling, rows, pad)
            if _trains(adapter):
                self.trained.append(member)
                continue
            for p, pair in member.pairs.items():
                if p in projections:
                    a, b = pair.lora_A.detach(), pair.lora_B.detach() * member.factor
                    self.masked[p] = self._put(p, self.masked[p], a if p == "o" else b, member)
                    (self.still_b if p == "o" else self.still_a)[p].append(b if p == "o" else a)
        self.fixed = self._assemble() if not self.trained else None

    def update(self) -> Update:
        return self.fixed if self.fixed is not None else self._assemble()

    def _assemble(self) -> Update:
        first: dict[str, Tensor] = {}
        second: dict[str, Tensor] = {}
        if len(self.trained) == 1 and self.trained[0].pad == (0, 0):  # alone: its own tensors
            pairs, factor = self.trained[0].pairs, self.trained[0].factor
            for p in self.projections:
                first[p], second[p] = pairs[p].lora_A, pairs[p].lora_B
            return Update(self.heads, first, second, factor, self.folded)
        for p in self.projections:
            masked, parts_a, parts_b = self.masked[p], list(self.still_a[p]), list(self.still_b[p])
            for member in self.trained:
                a: Tensor = member.pairs[p].lora_A
                b: Tensor = member.pairs[p].lora_B
                if member.factor != 1:
                    b = b * member.factor
                masked = self._put(p, masked, a if p == "o" else b, member)
                (parts_b if p == "o" else parts_a).append(b if p == "o" else a)
            first[p] = masked if p == "o" else torch.cat(parts_a, 0)
            second[p] = torch.cat(parts_b, 1) if p == "o" else masked
        return Update(self.heads, first, second, 1.0, self.folded)

    def _shape(self, p: str, rows: int) -> tuple[int, int]:
        return (self.rank, rows) if p == "o" else (rows, self.rank)

    @staticmethod
    def _put(p: str, masked: Tensor, values: Tensor, member: _Member) -> Tensor:
        """B (A for o) with a member's values added at its rows (columns) and ranks, which are zero before."""
        if p == "o":
            return masked.index_add(1, member.rows, F.pad(values, (0, 0, *member.pad)))
        return masked.index_add(0, member.rows, F.pad(values, member.pad))


def _product(p: str, layer: int, adapters: list[tuple[HeadLora, float]]) -> Tensor:
    """The sum of B A of one projection over adapters, each with its strength, in full size (d, d)."""
    width = adapters[0][0].num_heads * adapters[0][0].head_dim
    total = torch.zeros(width, width, device=adapters[0][0].device)
    for adapter, scale in adapters:
        pair, rows = adapter.layer(layer)[p], adapter.rows(layer).to(total.device)
        product = pair.lora_B.detach() @ pair.lora_A.detach() * (scale * adapter.scaling)
        total.index_add_(1 if p == "o" else 0, rows, product)
    return total


def _trains(adapter: HeadLora) -> bool:
    return any(p.requires_grad for p in adapter.parameters())
