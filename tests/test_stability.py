"""Latents of two seeds are matched whatever their order and scale."""

import numpy as np
import torch

from crosscoders import stability


def test_permuted_and_rescaled_latents_are_found_again_and_dead_ones_left_out():
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(200, 40, generator=generator)
    order = torch.randperm(200, generator=generator)
    other = decoder[order] * (0.5 + torch.rand(200, 1, generator=generator))
    alive, other_alive = np.arange(200) % 10 > 0, np.ones(200, bool)
    other_alive[0] = False
    cosine, latent = stability.match(decoder, other, alive, other_alive)
    assert np.isnan(cosine[~alive]).all()
    assert (latent[~alive] == -1).all()
    found = alive & (np.arange(200) != int(order[0]))
    assert np.array_equal(order.numpy()[latent[found]], np.flatnonzero(found))
    np.testing.assert_allclose(cosine[found], 1, atol=1e-5)
    if alive[int(order[0])]:
        assert cosine[int(order[0])] < 0.8, "its partner is dead"
