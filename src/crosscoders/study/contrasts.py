"""What a contrast of sources means: which two Δ compares, and what their subsets are called."""

from __future__ import annotations

SEVERAL = 3
"""Sources of a contrast from which subsets and pairs are told apart; with two, Δ says all."""
NONE = "none"
"""Class of a latent that writes none of the compared sources."""


def contrast_attributes(contrast: list[str]) -> dict[str, str]:
    """What an artifact says of its contrast: the two sources that Δ compares, and all of them where there are more.

    Parameters
    ----------
    contrast : list of str
        Names of two or more sources.

    Returns
    -------
    dict
        Attributes `base` and `chat`, the first source and the last; with more than two `contrast` and `compared` besides.
    """
    first, last = contrast[0], contrast[-1]
    attributes = {"base": first, "chat": last}
    if len(contrast) < SEVERAL:
        return attributes
    compared = f"relative norm, cosine, norm classes, nu without a pair, twins and enrichment compare {first} (base) with {last} (chat)"
    return attributes | {"contrast": " ".join(contrast), "compared": compared}


def subset_names(sources: list[str]) -> list[str]:
    """Names of all subsets of some sources, as `base+chat`.

    Parameters
    ----------
    sources : list of str

    Returns
    -------
    list of str
        Subset i has the sources s whose bit 2^s is set in i; the first, without any, is `none`.
    """
    masks = range(1 << len(sources))
    return ["+".join(name for s, name in enumerate(sources) if mask >> s & 1) or NONE for mask in masks]
