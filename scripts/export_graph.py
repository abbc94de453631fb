"""One policy as a graph of torch.export, which runs with torch alone, without this package.

python scripts/export_graph.py policies/maze2d-medium policy.pt2 [--method aepo-weighted] [--seed 0]

`torch.export.load("policy.pt2").module()(state, noise)`: raw states `(N, n)` and standard normal noise `(N, k, d)`, k rows a
state, give actions `(N, d)`; float32, on the CPU. docs/policies.md says more.
"""

import argparse
import timeit
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from aepo import Policy, files
from aepo.core.models import ClosedForm, ClosedShift
from aepo.learners.actor import Actor


class Graph(nn.Module):
    """What an actor of one seed computes, as a module that owns its networks."""

    def __init__(self, actor: Actor):
        super().__init__()
        self.actor, self.behavior, self.critic, self.guide = actor, actor.behavior, actor.critic, actor.guide

    def forward(self, state: Tensor, noise: Tensor) -> Tensor:
        return self.actor.act(state[None], noise[None])[0]


def shapes(policy: Policy) -> tuple[int, int, int]:
    """n, k and d: numbers of a state, rows of noise a state, numbers of an action."""
    behavior = policy.actor.behavior
    return behavior.state_mean.shape[-1], policy.actor.draws, behavior.low.shape[-1]


@torch.no_grad()
def export(policy: Policy, path: Path) -> None:
    """Write a policy on the CPU as a graph; StudyError where it cannot be one."""
    guide, (n, k, d) = policy.actor.guide, shapes(policy)
    if isinstance(guide, ClosedForm) and not (isinstance(guide, ClosedShift) and guide.kind == "cubature"):
        problem = f"the guidance {guide.kind!r} takes gradients while it acts, which torch.export cannot record"
        raise files.StudyError(f"{problem}: export a method with a cubature shift, a network or no guidance")
    state, noise = torch.zeros(2, n), torch.zeros(2, k, d)
    policy.actor.act(state[None], noise[None])  # the sampler's times, made once, are constants of the graph
    several = {0: torch.export.Dim("N")}
    program = torch.export.export(Graph(policy.actor), (state, noise), dynamic_shapes=(several, several))
    for node in program.graph.nodes:  # its lines of source name folders of this machine
        node.meta.pop("stack_trace", None)
    with files.atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No complete tensor found")  # times are views of one tensor
        with temporary.open("wb") as file:
            torch.export.save(program, file)


@torch.no_grad()
def compared(policy: Policy, path: Path) -> tuple[float, float, float]:
    """Greatest difference of actions in 1,000 states like the data's; milliseconds that one state takes both."""
    graph, behavior, (n, k, d) = torch.export.load(path).module(), policy.actor.behavior, shapes(policy)
    state, noise = behavior.state_mean[0] + 2 * behavior.state_std[0] * torch.randn(1_000, n), torch.randn(1_000, k, d)
    own = lambda state, noise: policy.actor.act(state[None], noise[None])[0]  # noqa: E731
    apart = (graph(state, noise) - own(state, noise)).abs().max().item()
    times = [min(timeit.repeat(lambda act=act: act(state[:1], noise[:1]), number=1, repeat=50)) for act in (graph, own)]
    return apart, *(1e3 * seconds for seconds in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="an exported policy or a run folder")
    parser.add_argument("path", type=Path, help="the file to write, such as policy.pt2")
    parser.add_argument("--method", help="the folder's only one if left out")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        policy = Policy.load(given.folder, given.method, given.seed, device="cpu")
        export(policy, given.path)
    except files.StudyError as error:
        raise SystemExit(f"export_graph: {error}") from None
    (n, k, d), size = shapes(policy), given.path.stat().st_size / 1e6
    apart, graph, own = compared(policy, given.path)
    print(f"{given.path}: state (N, {n}), noise (N, {k}, {d}) -> action (N, {d}), {size:.1f} MB")
    print(f"at most {apart:.1g} from the policy in 1,000 states; a state takes {graph:.1f} ms, the policy {own:.1f}")


if __name__ == "__main__":
    main()
