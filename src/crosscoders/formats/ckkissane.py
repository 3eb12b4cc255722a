"""The format of ckkissane's replication of crosscoder model diffing: cfg.json, cc_weights.pt; it is read, not written.

Two sources, relu. The files hold no normalisation, although the crosscoder was trained on activations multiplied by a factor
per model; the reader of the files has to know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crosscoders.formats import portable as form
from crosscoders.formats import tensors as files
from crosscoders.formats.portable import Portable

NAME = "ckkissane"
CONFIG, WEIGHTS = "cfg.json", "cc_weights.pt"
FILES = (CONFIG, WEIGHTS)


def read(folder: Path, sources: Sequence[str] | None = None) -> Portable:
    """Read a crosscoder; no code in its pickled file is run.

    Parameters
    ----------
    folder : Path
    sources : list of str, optional
        Names of the two sources; base and chat where absent.

    Returns
    -------
    Portable

    Raises
    ------
    UserError
        A file is absent, damaged, or of another format.
    """
    config, weights = files.read_json(folder / CONFIG), files.read_pickle(folder / WEIGHTS)
    encoder, bias = weights.take("W_enc", 2, "d", "F"), weights.take("b_enc", "F")
    decoder, decoder_bias = weights.take("W_dec", "F", 2, "d"), weights.take("b_dec", 2, "d")
    files.agree(config, weights, folder / CONFIG, d_in="d", dict_size="F")
    names = form.source_names(sources, None, 2, folder)
    crosscoder = form.make(encoder.permute(2, 0, 1).flatten(1), bias, decoder.flatten(1), decoder_bias.flatten(), names)
    return form.without_units(crosscoder, NAME)
