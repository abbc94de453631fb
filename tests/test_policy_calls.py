"""A thousand random calls of the example policies: actions inside the box, or a clear ValueError."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aepo import Policy

EXAMPLE = Path(__file__).parents[1] / "runs" / "example" / "maze2d-umaze"
KEYS = ("observation", "achieved_goal")
DTYPES = ("f2", "f4", "f8", "i1", "i4", "i8", "u1", "?", "O", "U4", "c8", "M8[s]")
SIZES = (0.0, 1.0, 1e3, 1e7, 1e19, 1e30, 3e38, 1e300, np.inf, np.nan)
SAID = ("have shape", "NaN or infinity", "real numbers", "is a dict of", "unequal lengths", "do not fit together")


def observation(rng):
    """Something to act on: mostly states of the right size, of any type, as far away as numbers go."""
    good, bad = [(4,), (1, 4), (int(rng.integers(6)), 4)], [(5,), (3, 5), (2, 3, 4), (), (0,)]
    shape = good[rng.integers(3)] if rng.random() < 0.8 else bad[rng.integers(5)]
    value = rng.standard_normal(shape) * rng.choice(SIZES[: rng.integers(1, 11)], shape)
    kind = rng.choice(DTYPES) if rng.random() < 0.5 else "f8"
    with np.errstate(all="ignore"):
        try:
            value = np.asarray(value).astype(kind)
        except (ValueError, OverflowError):
            value = np.asarray(value)
    form = rng.integers(8)
    if form == 0:
        return value.tolist()
    if form == 1:
        parts = {KEYS[0]: value[..., :2], KEYS[1]: value[..., 2:]} if value.ndim else {KEYS[0]: value}
        return dict(list(parts.items())[: rng.integers(1, 3)])
    if form == 2:
        return [value, value[..., :1]] if value.ndim else [value, [1.0]]
    return value


@pytest.mark.filterwarnings("error")
def test_a_thousand_random_calls():
    rng, seen = np.random.default_rng(0), {"acted": 0, "refused": 0}
    policies = [Policy.load(EXAMPLE, m, device="cpu") for m in ("bc", "best-of-n", "aepo", "aepo-cubature")]
    for i in range(1_000):
        policy, given = policies[i % 4], observation(rng)
        policy.observation_keys = KEYS if isinstance(given, dict) else ()
        try:
            action, said = policy.act(given, torch.Generator().manual_seed(i)), None
        except ValueError as error:
            said = str(error)
        if said is not None:
            assert any(word in said for word in SAID), (given, said)
            seen["refused"] += 1
            continue
        rows = np.asarray(given[KEYS[0]] if isinstance(given, dict) else given).shape[:-1]
        assert action.shape == (*rows, 2)
        assert (np.abs(action) <= 1).all(), given  # which NaN is not
        seen["acted"] += 1
    assert min(seen.values()) > 300, seen


@pytest.mark.parametrize("method", ["bc", "best-of-n", "aepo"])
def test_the_farthest_states(method):
    """Networks overflow on them; they are taken to lie a million standard deviations away."""
    policy = Policy.load(EXAMPLE, method, device="cpu")
    far = np.array([[1e30, -1e30, 1e38, 3e38], [-3e38, 1e8, 0.0, -1e12]])
    actions = policy.act(far, torch.Generator().manual_seed(0))
    assert (np.abs(actions) <= 1).all()
    behavior = policy.actor.behavior
    edge = (behavior.state_mean + 1e6 * behavior.state_std * torch.tensor(far).sign())[0].numpy()
    near = np.where(np.abs(far) > 1e7, edge, far)
    assert method == "best-of-n" or np.allclose(actions, policy.act(near, torch.Generator().manual_seed(0)), atol=1e-3)
