"""Stage trace_latents: when every latent emerges and vanishes in training, and how it rotates, beside what chance gives.

Shares of latents have Wilson's interval, quantiles one that holds for any distribution: latents are a sample of what a
training of the crosscoder could have found. Chance is the same with snapshots in random order, and, for rotation, with the
decoder vectors of different latents paired.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.analysis import traces
from crosscoders.analysis.sections import TraceLatentsSection
from crosscoders.analysis.traces import Presence
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.files import from_dataset
from crosscoders.errors import UserError

SHARES = {
    "emerged": "share of latents that emerge at the snapshot",
    "vanished": "share of latents that vanish after the snapshot",
    "present": "share of latents that are present in the snapshot",
    "contiguous": "share of latents that are present in all snapshots between their first and their last",
}
ROTATIONS = {"before": "cosine with the snapshot before", "final": "cosine with the last snapshot"}
_variable = artifacts.variable


def counted(coder: Crosscoder, through: list[str], density: np.ndarray) -> np.ndarray:
    """Indices of the latents that are followed: they fire on test tokens and may write every snapshot."""
    chosen = [coder.sources.index(name) for name in through]
    writes = coder.writes[:, chosen].all(1).numpy() & (coder.decoder_norms()[:, chosen].sum(1) > 0).numpy()
    return np.flatnonzero(writes & (density > 0))


def with_interval(name: str, dims: tuple[str, ...], values, label: str) -> dict[str, xr.Variable]:
    """A variable and the ends of its interval."""
    ends = {"": label, "_low": f"lower end of its interval: {label}", "_high": f"upper end of its interval: {label}"}
    return {
        f"trace_{name}{end}": _variable(dims, one, text) for (end, text), one in zip(ends.items(), values, strict=True)
    }


def share_variables(presence: Presence, section: TraceLatentsSection) -> dict[str, xr.Variable]:
    """Shares of latents by where they are present, and the same with snapshots in random order."""
    confidence, count, variables = section.bootstrap.confidence, len(presence.present), {}
    null = traces.permuted_shares(presence.present, section.permutations, confidence, section.bootstrap.seed)
    for name, share in presence.shares().items():
        dims = ("snapshot",) if share.ndim else ()
        ends = traces.wilson(share, count, confidence)
        variables |= with_interval(name, dims, (share, *ends), SHARES[name])
        variables |= with_interval(f"{name}_null", dims, null[name], f"{SHARES[name]}, snapshots in random order")
    return variables


def group_variables(presence: Presence, density: np.ndarray, confidence: float) -> dict[str, xr.Variable]:
    """Norms through training, and the share of dense latents, of the latents that emerge at each snapshot."""
    groups = [presence.emerges_at == at for at in range(presence.norm.shape[1])]
    median = traces.QUANTILES.index(0.5)
    norms = np.stack([[traces.quantiles(row, confidence)[:, median] for row in presence.norm[of].T] for of in groups])
    dense = density >= np.quantile(density, 1 - traces.DENSEST) if len(density) else np.zeros(0, bool)
    sizes = np.array([of.sum() for of in groups])
    shares = np.array([dense[of].mean() if of.any() else np.nan for of in groups])
    ends = traces.wilson(np.nan_to_num(shares), sizes, confidence)
    label = f"share of the group's latents among the densest {traces.DENSEST:.0%} of all"
    return {
        **with_interval("norm", ("emerged_in", "snapshot"), norms.transpose(2, 0, 1), "median norm over the largest"),
        **with_interval("dense", ("emerged_in",), (shares, *ends), label),
        "trace_dense_all": _variable((), dense.sum() / max(len(dense), 1), "share of all latents that count as dense"),
        "trace_group_latents": _variable("emerged_in", sizes, "latents that emerge at the snapshot"),
    }


def rotation_variables(
    decoders: list[torch.Tensor], presence: Presence, section: TraceLatentsSection
) -> tuple[dict[str, xr.Variable], dict[str, np.ndarray]]:
    """Quantiles of cosines over the latents present in both snapshots, with their null; and all cosines, (m, S) each."""
    partner, variables, cosines = traces.partners(len(presence.present), section.bootstrap.seed), {}, {}
    for suffix, of in (("", None), ("_null", partner)):
        rotated, inside = traces.rotation(decoders, of), traces.present_in_both(presence.present, of)
        for name, values, chosen in zip(ROTATIONS, rotated, inside, strict=True):
            columns = [
                traces.quantiles(column[here & np.isfinite(column)], section.bootstrap.confidence)
                for column, here in zip(values.T, chosen.T, strict=True)
            ]
            label = ROTATIONS[name] + (", different latents paired" if suffix else "")
            variables |= with_interval(f"{name}{suffix}", ("snapshot", "quantile"), np.stack(columns, axis=1), label)
            cosines |= {} if suffix else {name: values}
    return variables, cosines


def latent_variables(
    presence: Presence, cosines: dict[str, np.ndarray], chosen: np.ndarray, latents: int
) -> dict[str, xr.Variable]:
    """What is known of every latent; −1 and NaN for those that are not followed."""

    def spread(values: np.ndarray, fill: float) -> np.ndarray:
        out = np.full((latents, *values.shape[1:]), fill, values.dtype)
        out[chosen] = values
        return out

    places = {
        "emerges_at": (presence.emerges_at, "index of the first snapshot with at least half the largest decoder norm"),
        "vanishes_after": (presence.vanishes_after, "index of the last such snapshot, -1 where it is the last of all"),
        "peak_at": (presence.peak_at, "index of the snapshot with the largest decoder norm"),
    }
    variables = {
        name: _variable("latent", spread(values.astype(np.int32), -1), label)
        for name, (values, label) in places.items()
    }
    followed = np.zeros(latents, np.int8)
    followed[chosen] = 1
    dims = ("latent", "snapshot")
    variables["followed"] = _variable("latent", followed, "fires on test tokens and may write every snapshot")
    variables["norm_over_peak"] = _variable(dims, spread(presence.norm, np.nan), "decoder norm over the largest")
    for name, values in cosines.items():
        variables[f"cosine_{name}"] = _variable(dims, spread(values, np.nan), ROTATIONS[name])
    return variables


def traced(coder: Crosscoder, density: np.ndarray, section: TraceLatentsSection) -> xr.Dataset:
    """All that is known of a crosscoder's latents through training.

    Parameters
    ----------
    coder : Crosscoder
    density : (m,)
        Share of test tokens on which each latent is active.
    section : TraceLatentsSection

    Returns
    -------
    xarray.Dataset
        Over `latent` (m,), `snapshot` and `emerged_in` (S,), and `quantile`; shares and quantiles are NaN where no latent
        can be followed.

    Raises
    ------
    UserError
        Sources differ in width.
    """
    columns = [coder.columns[coder.sources.index(name)] for name in section.through]
    widths = {name: column.stop - column.start for name, column in zip(section.through, columns, strict=True)}
    if len(set(widths.values())) > 1:
        raise UserError(f"settings.{section.setting_name}.through: widths {widths}; expected sources of equal width")
    chosen = counted(coder, section.through, density)
    decoders = [coder.decoder[torch.from_numpy(chosen)][:, column].double() for column in columns]
    presence = Presence.of(np.stack([decoder.norm(dim=1).numpy() for decoder in decoders], axis=1))
    rotations, cosines = rotation_variables(decoders, presence, section)
    steps = np.array(section.steps or [-1] * len(section.through))
    variables = latent_variables(presence, cosines, chosen, coder.latents) | rotations
    variables |= share_variables(presence, section)
    variables |= group_variables(presence, density[chosen], section.bootstrap.confidence)
    variables["trace_latents"] = _variable((), np.int64(len(chosen)), "latents that are followed")
    variables["trace_step"] = _variable("snapshot", steps, "step of training, -1 where it is not known")
    names = np.array(section.through, dtype=object)
    coords = {
        "snapshot": ("snapshot", names, {"long_name": "snapshot"}),
        "emerged_in": ("emerged_in", names, {"long_name": "snapshot at which the latents emerge"}),
        "quantile": ("quantile", np.array(traces.QUANTILES), {"long_name": "quantile over latents"}),
    }
    return xr.Dataset(variables, coords=coords)


def main(arguments) -> None:
    """Follow the latents of one crosscoder."""
    section: TraceLatentsSection = arguments.settings
    torch.set_grad_enabled(False)
    coder, latents = from_dataset(artifacts.read(arguments.crosscoder)), artifacts.read(arguments.latents)
    dataset = traced(coder, latents["density"].values, section)
    dataset.attrs = section.provenance() | {"title": "latents through training"}
    artifacts.write(dataset, arguments.output)
    shares = ", ".join(
        f"{name} {share:.2f}" for name, share in zip(section.through, dataset["trace_emerged"].values, strict=True)
    )
    stage.say(f"trace_latents {section.label}: {int(dataset['trace_latents'])} latents emerge at {shares}")


if __name__ == "__main__":
    stage.run(main, stage.parser(TraceLatentsSection, __doc__, "crosscoder", "latents", "output").parse_args())
