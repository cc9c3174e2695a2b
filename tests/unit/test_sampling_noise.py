"""Noise by counting, against Philox in plain whole numbers, the published answers, and the normal distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rtdecode.decode.sampling.noise import key_of, normal, philox

KEY = (0xA4093822, 0x299F31D0)


def naive(counter: list[int], key: tuple[int, int]) -> list[int]:
    """Philox 4x32-10 as the paper writes it."""
    c, k = list(counter), list(key)
    for turn in range(10):
        if turn:
            k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
        high0, low0 = divmod(c[0] * 0xD2511F53, 2**32)
        high1, low1 = divmod(c[2] * 0xCD9E8D57, 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
    return c


def test_the_plain_version_gives_the_published_answers() -> None:
    """Known answers of Random123, the authors' own library."""
    assert naive([0] * 4, (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    full = 2**32 - 1
    assert naive([full] * 4, (full, full)) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert naive(pi, KEY) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("key", [(0, 0), KEY, (2**32 - 1, 1)])
def test_words_are_those_of_the_plain_version(key: tuple[int, int]) -> None:
    blocks = np.array([0, 1, 2, 77, 2**31, 2**32 - 1, 2**32 + 5, 2**40], np.int64)
    found = np.stack(philox(blocks, key), -1)
    expected = [naive([int(b) % 2**32, int(b) >> 32, 0, 0], key) for b in blocks]
    np.testing.assert_array_equal(found, expected)


def test_torch_gives_the_same_bits_as_numpy() -> None:
    torch = pytest.importorskip("torch")
    for shape in ((3,), (1, 4, 96, 96), (2, 5, 7)):
        ours = normal(np, key_of(7, 1, 2), shape)
        theirs = normal(torch, key_of(7, 1, 2), shape, device="cpu")
        assert theirs.dtype == torch.float32
        assert ours.dtype == np.float32
        assert ours.shape == tuple(theirs.shape) == shape
        np.testing.assert_array_equal(theirs.numpy(), ours)


def test_values_are_normal() -> None:
    found = normal(np, key_of(0), (1_000_000,)).astype(np.float64)
    assert stats.kstest(found, "norm").pvalue > 0.001
    assert abs(found.mean()) < 4e-3
    assert found.std() == pytest.approx(1, abs=4e-3)
    assert stats.kurtosis(found) == pytest.approx(0, abs=0.03)
    assert abs(found).max() < 6.3
    for z, off in ((2, 0.02), (3, 0.1), (4, 0.5)):
        assert np.mean(np.abs(found) > z) == pytest.approx(2 * stats.norm.sf(z), rel=off)


def test_values_are_the_quantiles_of_their_words() -> None:
    words = np.stack(philox(np.arange(20_000), KEY), -1).ravel()
    found = normal(np, KEY, words.shape)
    sign = np.where(words % 2, -1, 1)
    exact = sign * stats.norm.ppf((words // 2 + 1) / 2**32)
    np.testing.assert_allclose(found, exact, atol=1e-6)


def test_values_depend_on_their_place_and_key_alone() -> None:
    whole = normal(np, key_of(3, 0), (64, 5))
    np.testing.assert_array_equal(normal(np, key_of(3, 0), (10,)), whole.ravel()[:10])
    for other in (key_of(3, 1), key_of(4, 0), key_of(3, 0, 1), key_of((1 << 70) + 3, 0)):
        again = normal(np, other, (64, 5))
        assert abs(np.corrcoef(again.ravel(), whole.ravel())[0, 1]) < 0.2
        assert not np.any(again == whole)
