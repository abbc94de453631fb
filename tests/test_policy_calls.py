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


@pytest.mark.parametrize(
    "given",
    [
        torch.ones(2, 4, requires_grad=True),
        torch.full((2, 4), 1 / 3, dtype=torch.bfloat16, requires_grad=True),
        torch.ones(2, 4, dtype=torch.float16),
        torch.ones(2, 4, dtype=torch.int64),
    ],
    ids=["grad", "bfloat16", "float16", "int64"],
)
def test_tensors_act_as_the_array_of_their_numbers(given):
    policy = Policy.load(EXAMPLE, "bc", device="cpu")
    array = given.detach().double().numpy()
    act = lambda value: policy.act(value, torch.Generator().manual_seed(0))  # noqa: E731
    assert np.array_equal(act(given), act(array))
    policy.observation_keys = KEYS
    parts = {KEYS[0]: given[:, :2], KEYS[1]: given[:, 2:]}
    assert np.array_equal(act(parts), act(array))


@pytest.mark.parametrize(
    "given", [torch.ones(4, dtype=torch.complex64), [torch.ones(2, requires_grad=True)] * 2, [object()] * 4]
)
def test_what_is_no_array_of_numbers_is_a_value_error(given):
    with pytest.raises(ValueError, match=r"an array is needed|expected"):
        Policy.load(EXAMPLE, "bc", device="cpu").act(given)


@pytest.mark.parametrize("generator", [np.random.default_rng(0), 0, "cpu"])
def test_a_generator_that_is_not_torchs_is_refused_and_the_advised_one_acts(generator):
    policy = Policy.load(EXAMPLE, "bc", device="cpu")
    with pytest.raises(ValueError, match=r"must be a torch\.Generator, as torch\.Generator\(\) makes, got "):
        policy.act(np.zeros(4), generator)
    assert policy.act(np.zeros(4), torch.Generator()).shape == (2,)


@pytest.mark.parametrize("name", ["guidance_scale", "beta"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, 10**400, "2", [1.0], torch.tensor(1.0)])
def test_guidance_that_is_no_finite_number_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite number, at most 1e\\+06 in size, got "):
        Policy.load(EXAMPLE, "aepo", device="cpu", **{name: value})


@pytest.mark.parametrize("method", ["aepo", "aepo-cubature", "aepo-net"])
@pytest.mark.parametrize("scale", [0, np.float32(2), 1e6, -1e6])
def test_any_finite_guidance_acts_inside_the_box(method, scale):
    policy = Policy.load(EXAMPLE, method, guidance_scale=scale, device="cpu")
    states = np.random.default_rng(0).normal(size=(50, 4)) * np.array([1, 1, 10, 1e4])
    assert (np.abs(policy.act(states, torch.Generator().manual_seed(0))) <= 1).all()
