"""The guidance scale by a rule: exact where the answer is known."""

from dataclasses import replace

import gaussian
import pytest
import torch
from gaussian import SEEDS, SLOPE, VARIANCE, LinearCritic

from aepo import files
from aepo.core.models import ClosedForm
from aepo.study import guidance_scale, stages
from aepo.study.policy import Actor


def test_exact_guidance_is_matched_by_scale_one_and_half_of_it_by_two():
    """Gaussian behavior, linear Q: the gradient at the posterior mean is exact, so scale 1 reaches the target."""
    _, behavior = gaussian.problem()
    g = torch.Generator().manual_seed(0)
    state, noise = torch.zeros(len(SEEDS), 500, 1), torch.randn(len(SEEDS), 500, 1, 2, generator=g)
    support = behavior.sample(state.repeat_interleave(64, 1), torch.randn(len(SEEDS), 32_000, 2, generator=g), 15).view(
        len(SEEDS), 500, 64, 2
    )
    target = guidance_scale.target_advantage(LinearCritic(), state, support, 1.0)
    assert torch.allclose(target, (VARIANCE * SLOPE.square().sum()).expand(len(SEEDS)), atol=0.03)
    for beta, scale in ((1.0, 1.0), (0.5, 2.0)):
        actor = Actor(behavior, None, ClosedForm("point", behavior, LinearCritic(), beta), 1.0, 15, 1)
        reached = guidance_scale.reached_advantage(actor, LinearCritic(), state, noise)
        assert guidance_scale.nearest_scales(reached, target).tolist() == [scale] * len(SEEDS)


def test_scales_are_kept_until_the_networks_change(run, data, tiny, monkeypatch, capsys):
    behavior = stages.train_behavior(run, data)
    critic = stages.train_critic(run, data)
    stages.train_energy(run, data, behavior, critic, "aepo")
    monkeypatch.setattr(guidance_scale, "STATES", 20)
    scales = guidance_scale.matched_scales(run, "aepo", 3.0)
    assert len(scales) == len(run.seeds)
    assert set(scales) <= set(guidance_scale.SCALES)
    kept = files.read_json(run.folder / "evaluation" / "scale-aepo-b3.json")
    assert len(kept["reached"]) == len(guidance_scale.SCALES)
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(guidance_scale, "SCALES", (0.5, 0.75))
        guidance_scale.matched_scales(run, "aepo", 3.0)
    said = "guidance scale of aepo: at an end of what is tried, 0.5 to 0.75, for seeds [0, 1]\n"
    assert capsys.readouterr().out.endswith(said)
    scales = guidance_scale.matched_scales(run, "aepo", 3.0)
    monkeypatch.setattr(guidance_scale, "_match", lambda *_: pytest.fail("chosen again"))
    assert guidance_scale.matched_scales(run, "aepo", 3.0) == scales
    with pytest.raises(files.StudyError, match=r"energy-aepo-b1\.safetensors is missing"):
        guidance_scale.matched_scales(run, "aepo", 1.0)


def test_the_scale_is_chosen_for_the_time_that_sampling_starts_from(run, data, tiny, monkeypatch):
    behavior = stages.train_behavior(run, data)
    stages.train_energy(run, data, behavior, stages.train_critic(run, data), "aepo")
    monkeypatch.setattr(guidance_scale, "STATES", 20)
    seen, load = [], guidance_scale.load_actor
    monkeypatch.setattr(guidance_scale, "load_actor", lambda *given: seen.append(given[3].t_start) or load(*given))
    guidance_scale.matched_scales(run, "aepo", 3.0)
    later = {**run.task.settings, "evaluation": {**run.task.settings.get("evaluation", {}), "t_start": 0.5}}
    guidance_scale.matched_scales(replace(run, task=replace(run.task, settings=later)), "aepo", 3.0)
    assert seen == [1.0, 0.5]
