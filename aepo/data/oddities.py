"""What is odd about a dataset: nothing here stops a run, each finding is one sentence."""

from __future__ import annotations

import torch

from aepo.data.datasets import Dataset

SHORT = 2
CONSTANT = 1e-6
AT_BOUND = 0.999


def find(data: Dataset) -> list[str]:
    """Sentences on constant observations, saturated or constant actions, equal rewards, short and unended episodes."""
    found = []
    spread = data.state.amax(0) - data.state.amin(0)
    constant = torch.nonzero(spread <= CONSTANT * data.state.abs().amax(0).clamp(min=1)).flatten().tolist()
    if constant:
        shown = ", ".join(map(str, constant[:8])) + (", ..." if len(constant) > 8 else "")
        found.append(
            f"{len(constant)} of {len(spread)} observation dimensions never change ({shown}): the networks have not seen "
            "them vary, and an environment in which they do is another one"
        )
    still = (data.action.amax(0) - data.action.amin(0) <= CONSTANT).nonzero().flatten().tolist()
    if still:
        found.append(f"action dimensions {', '.join(map(str, still))} never change: nothing says what they do")
    share = (data.action.abs() >= AT_BOUND).float().mean().item()
    if share > 0.05:
        found.append(
            f"{100 * share:.0f}% of the actions' components are at a bound of the box: the behavior pushes as hard as it "
            "can, and its density has mass on the box's faces"
        )
    if (data.reward == data.reward[0]).all():
        found.append(f"every reward is {data.reward[0].item():g}: no action can be told from another by it")
    length = torch.bincount(data.episode)
    short = int((length < SHORT).sum())
    if short:
        found.append(f"{short} of {len(length)} episodes have one step")
    ends = torch.cat([data.episode[1:] != data.episode[:-1], torch.tensor([True])])
    inside = int(data.terminated[~ends].sum())
    if inside:
        found.append(f"{inside} steps terminate inside an episode: what follows them is another episode's")
    if not (data.terminated + data.truncated)[ends].bool().all():
        found.append("some episodes neither terminate nor are truncated: they were broken off, and count as truncated")
    return found
