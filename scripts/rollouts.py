"""Rollouts to look at, as an animation: a recorded episode, cloning and a method side by side, from what a run kept.

python scripts/rollouts.py runs/study/maze2d-umaze [--methods bc,aepo-weighted] [--output figures/rollouts]

Mazes are drawn as maps. Hopper, HalfCheetah and Walker2d are drawn by MuJoCo, which without a screen needs OSMesa (Debian:
libosmesa6, MUJOCO_GL=osmesa) or EGL; their poses are the states themselves, the way they went is their speed summed up.
"""

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import gymnasium as gym
import imageio.v3 as imageio
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw

from aepo import files
from aepo.data import datasets, tasks
from aepo.data.tasks import Task
from aepo.study import runs, views

MOST_BYTES, FRAMES, SIDE = 2_000_000, 48, 150
POSED = ("Hopper", "HalfCheetah", "Walker2d")


def recorded(data: datasets.Dataset, task: Task) -> np.ndarray:
    """States `(T, n)` of the recorded episode (of a walk: the window of `horizon` steps) of median return."""
    returns = datasets.recorded_returns(data, task.horizon, task.continuing)
    middle = returns.argsort(kind="stable")[len(returns) // 2]
    if task.continuing:
        return data.state[middle * task.horizon : (middle + 1) * task.horizon].numpy()
    return data.state[data.episode == data.episode.unique()[middle]][: task.horizon].numpy()


def kept(folder: Path, method: str) -> np.ndarray:
    """States `(T, n)` of the first seed's first episode, to its end."""
    states = files.load_tensors(folder / "evaluation" / f"{method}.safetensors")[0]["states"][:, 0, 0].numpy()
    return states[np.isfinite(states).all(1)]


def maze_frames(
    task: Task, data: datasets.Dataset, ways: Mapping[str, np.ndarray], at: np.ndarray
) -> Iterator[np.ndarray]:
    """Frames of ways through the task's maze, a panel each."""
    shown = views.view(task, data)
    figure, axes = plt.subplots(1, len(ways), figsize=(2.1 * len(ways), 2.2), dpi=85, layout="constrained")
    lines = []
    for ax, (name, states) in zip(axes, ways.items(), strict=True):
        shown.draw(ax)
        ax.set(title=name, xlabel="", ylabel="", xticks=[], yticks=[])
        lines.append((shown.project(states), *ax.plot([], [], lw=1.2), *ax.plot([], [], "o", color="k", ms=5)))
    for step in at:
        for place, way, dot in lines:
            end = min(step, len(place) - 1)
            way.set_data(*place[: end + 1].T)
            dot.set_data(*place[end : end + 1].T)
        figure.canvas.draw()
        yield np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)


def posed_frames(task: Task, ways: Mapping[str, np.ndarray], at: np.ndarray) -> Iterator[np.ndarray]:
    """Frames of a planar robot in the poses of its states, a panel each; after its fall it stays where it lies."""
    drawn = {"render_mode": "rgb_array", "width": SIDE, "height": SIDE, "camera_name": "track"}
    env = gym.make(task.env_id, **drawn, **task.env_kwargs)
    env.reset(seed=0)
    robot, count = env.unwrapped, env.unwrapped.model.nq - 1
    for step in at:
        panels = []
        for name, states in ways.items():
            end = min(step, len(states) - 1)
            way = states[:end, count].sum() * robot.dt
            robot.set_state(np.r_[way, states[end, :count]], states[end, count:].astype(float))
            panel = Image.fromarray(env.render())
            ImageDraw.Draw(panel).text((5, 4), name, fill="white")
            panels.append(np.asarray(panel))
        yield np.concatenate(panels, 1)
    env.close()


def animate(folder: Path, methods: list[str], output: Path) -> Path:
    """Write the animation of a run folder; StudyError where something is missing."""
    task, profile = tasks.get(folder.name), folder.parent.name
    data = datasets.load(task, profile)
    ways = {"recorded": recorded(data, task)} | {method: kept(folder, method) for method in methods}
    last = min(max(map(len, ways.values())), task.horizon, 400) - 1
    at = np.unique(np.linspace(0, last, FRAMES).round().astype(int))
    if "Maze" in task.env_id:
        frames = list(maze_frames(task, data, ways, at))
    elif task.env_id.startswith(POSED):
        try:
            frames = list(posed_frames(task, ways, at))
        except Exception as error:  # PyOpenGL raises its own kinds where there is no GL
            remedy = "install libosmesa6 and set MUJOCO_GL=osmesa, or on a machine with EGL set MUJOCO_GL=egl"
            raise files.StudyError(f"MuJoCo cannot draw here ({type(error).__name__}): {remedy}") from None
    else:
        raise files.StudyError(f"{task.name}: only mazes and {', '.join(POSED)} are drawn")
    path = output / f"{task.name}.gif"
    with files.atomic_path(path) as temporary:
        imageio.imwrite(temporary, np.stack(frames), extension=".gif", duration=60, loop=0)
        if temporary.stat().st_size > MOST_BYTES:
            raise files.StudyError(f"{path.name} would be larger than {MOST_BYTES / 1e6:g} MB: take fewer frames")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders runs/<profile>/<task>")
    parser.add_argument("--methods", default="bc,aepo-weighted", help="evaluated methods, comma-separated")
    parser.add_argument("--output", type=Path, default=files.project_root() / "figures" / "rollouts")
    given = parser.parse_args()
    for folder in given.folders:
        try:
            path = animate(runs.find_folder(folder), given.methods.split(","), given.output)
        except (files.StudyError, ValueError) as error:
            raise SystemExit(f"rollouts: {error}") from None
        print(f"{path}: {path.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    os.environ.setdefault("MUJOCO_GL", "osmesa")
    main()
