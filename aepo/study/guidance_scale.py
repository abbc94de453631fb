"""The guidance scale by a rule that needs no environment: guided actions as good, by Q, as those of the target policy."""

from dataclasses import replace

import torch
from torch import Tensor

from aepo import files
from aepo import settings as settings_table
from aepo.core.models import Critic
from aepo.data.datasets import load
from aepo.learners.draws import Random
from aepo.learners.support import sample_actions
from aepo.study import runs
from aepo.study.policy import Acting, Actor, load_actor, load_networks
from aepo.study.runs import Run

SCALES = (0.0625, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)
STATES, SAMPLES = 1_000, 64


@torch.no_grad()
def target_advantage(critic: Critic, state: Tensor, support: Tensor, beta: float) -> Tensor:
    """Mean advantage of pi* ∝ mu exp(beta Q), self-normalised over behavior samples `(S, B, M, d)`: `(S,)`."""
    q = critic.advantage(state, support.flatten(1, 2)).view(support.shape[:-1])
    return (torch.softmax(beta * q, -1) * q).sum(-1).mean(-1)


@torch.no_grad()
def reached_advantage(actor: Actor, critic: Critic, state: Tensor, noise: Tensor) -> Tensor:
    """Mean advantage of an actor's actions at each of SCALES: state `(S, B, n)`, noise `(S, B, 1, d)` -> `(W, S)`."""
    proposals = (replace(actor, guidance_scale=scale).propose(state, noise) for scale in SCALES)
    return torch.stack([critic.advantage(state, action).mean(-1) for action in proposals])


def nearest_scales(reached: Tensor, target: Tensor) -> Tensor:
    """The scale of each seed whose mean advantage is nearest to the target's: `(W, S)`, `(S,)` -> `(S,)`."""
    return torch.tensor(SCALES)[(reached - target).abs().argmin(0).cpu()]


def checksums(run: Run, method: str, beta: float, *more: str) -> dict[str, str]:
    """Contents of the networks that a method acts with, and of `more` stages."""
    stages = sorted({*runs.stages_of(method, beta).values(), *more})
    return {stage: files.load_tensors(run.artifact(stage))[1]["sha256"] for stage in stages}


def matched_scales(run: Run, method: str, beta: float) -> list[float]:
    """One guidance scale a seed of the run, kept in evaluation/scale-<method>-b<beta>.json with what it was chosen by."""
    settings, networks = run.profile.evaluation, checksums(run, method, beta, "behavior", "critic")
    content = {"networks": networks, "seeds": list(run.seeds), "solver_steps": settings.solver_steps}
    content |= {"scales": list(SCALES), "states": STATES, "samples": SAMPLES}
    content |= {"noise_scale": settings.noise_scale[method], "t_start": settings.t_start}
    digest = settings_table.digest(content)
    path = run.folder / "evaluation" / f"scale-{method}-b{beta:g}.json"
    with files.lock(run.folder, path.stem):
        kept = files.read_json(path)
        if kept.get("settings_hash") != digest:
            kept = content | _match(run, method, beta)
            files.write_json(path, kept | {"settings_hash": digest})
    return kept["chosen"]


def _match(run: Run, method: str, beta: float) -> dict[str, list]:
    """`chosen` of each seed, with `target` and what each of SCALES `reached`."""
    settings, data = run.profile.evaluation, load(run.task, run.profile_name).to(run.device)
    behavior, critic = (load_networks(run.folder, stage, run.seeds, run.device) for stage in ("behavior", "critic"))
    how = Acting(beta, 1.0, settings.solver_steps, noise_scale=settings.noise_scale[method], t_start=settings.t_start)
    actor = load_actor(run.folder, method, run.seeds, how, run.device)
    random, count = Random(run.seeds, "scale", like=data.state), min(STATES, len(data))
    state = data.standardize(data.state)[random.subset(len(data), count)]
    noise = random.normal(count, 1, data.action.shape[1])[0]
    support = sample_actions(behavior, state, SAMPLES, settings.solver_steps, random)
    target, reached = target_advantage(critic, state, support, beta), reached_advantage(actor, critic, state, noise)
    found = {"target": target, "reached": reached, "chosen": nearest_scales(reached, target)}
    low, high = SCALES[0], SCALES[-1]
    if clipped := [seed for seed, scale in zip(run.seeds, found["chosen"], strict=True) if scale in (low, high)]:
        print(f"guidance scale of {method}: at an end of what is tried, {low} to {high}, for seeds {clipped}")
    return {name: values.tolist() for name, values in found.items()}
