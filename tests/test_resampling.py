"""Resampling by Q along the way, against the distribution that it should draw from."""

import importlib.util
from pathlib import Path

import pytest
import torch

from aepo.core.schedule import VPSchedule

VP = VPSchedule()
_spec = importlib.util.spec_from_file_location("resampling", Path(__file__).parents[1] / "scripts" / "resampling.py")
resampling = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(resampling)


@pytest.mark.parametrize("slope", [1.0, -1.5])
def test_resampled_gaussian_data_are_the_tilted_gaussian(slope):
    """N(0, v) tilted by exp(slope a) is N(v slope, v): v = 1, less what ancestral steps lose; a_t's noise is sigma_t a_t."""
    noise = torch.randn(4, 200, 2_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    make = lambda q: resampling.resample(lambda a, t: VP.sigma(t) * a, noise, VP, 200, q)  # noqa: E731
    plain, tilted = make(lambda a: 0 * a[..., 0]), make(lambda a: slope * a[..., 0])
    assert plain.mean().item() == pytest.approx(0.0, abs=0.05)
    assert plain.var().item() == pytest.approx(0.95, abs=0.05)
    assert tilted.mean().item() == pytest.approx(slope * plain.var().item(), abs=0.06)
    assert tilted.var().item() == pytest.approx(plain.var().item(), abs=0.06)


def test_candidates_are_resampled_state_by_state():
    noise = torch.randn(2, 3, 5, 8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    potential = lambda a: -10 * (a - torch.arange(3.0).view(3, 1, 1)).square().sum(-1)  # noqa: E731
    make = lambda n, q: resampling.resample(lambda a, t: VP.sigma(t) * a, n, VP, 5, q)  # noqa: E731
    together, alone = make(noise, potential), make(noise[:, 1:2], lambda a: -10 * (a - 1).square().sum(-1))
    assert torch.allclose(together[:, 1:2], alone)


def test_a_run_without_best_of_n_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(resampling.files.StudyError, match="no evaluation of best-of-n: run `aepo evaluate"):
        resampling.compare(tmp_path, [3.0], 16, 10, 2)
