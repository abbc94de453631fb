"""The rows of the task table, suite by suite: names, data, environments, scores. `tasks` makes `Task`s of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gymnasium_robotics.envs.maze import maps

from aepo import searched
from aepo.environments import MAZES

MINARI, D4RL, LOCAL = "minari", "d4rl", "local"
PROFILES = ("smoke", "quick", "full")

GOAL_KEYS = ("observation", "desired_goal")  # achieved_goal is observation[:2] of a point mass: left out
ANT_KEYS = ("achieved_goal", "observation", "desired_goal")  # the ant's 27 numbers lack its position

# Environment, numbers in an observation and in an action, steps of an episode.
LOCOMOTION = {
    "hopper": ("Hopper", 11, 3, 1000),
    "halfcheetah": ("HalfCheetah", 17, 6, 1000),
    "walker2d": ("Walker2d", 17, 6, 1000),
    "ant": ("Ant", 105, 8, 1000),
    "humanoid": ("Humanoid", 348, 17, 1000),
    "swimmer": ("Swimmer", 8, 2, 1000),
    "reacher": ("Reacher", 10, 2, 50),
    "pusher": ("Pusher", 23, 7, 100),
    "invertedpendulum": ("InvertedPendulum", 4, 1, 1000),
    "inverteddoublependulum": ("InvertedDoublePendulum", 9, 1, 1000),
}
# Returns of D4RL's random policy and of its SAC expert, d4rl/infos.py.
D4RL_LOCOMOTION = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}
# Numbers in an observation and in an action; references of Minari's v2 sets and of D4RL's v1 sets.
ADROIT = {
    "pen": ("Pen", 45, 24, (137.92955108500217, 8820.50845967583), (96.262799, 3076.8331017826877)),
    "door": ("Door", 39, 28, (-45.80706024169922, 2940.578369140625), (-56.512833, 2880.5693087298737)),
    "hammer": ("Hammer", 46, 26, (-267.074462890625, 12635.712890625), (-274.856578, 12794.134825156867)),
    "relocate": ("Relocate", 39, 30, (9.189092636108398, 4287.70458984375), (-6.425911, 4233.877797728884)),
}
POINTMAZE = {
    "open": (7.199999809265137, 229.86000061035156),
    "open-dense": (70.7329330444336, 229.4267120361328),
    "umaze": (13.489999771118164, 218.6999969482422),
    "umaze-dense": (59.25226974487305, 223.9688720703125),
    "medium": (17.65999984741211, 361.04998779296875),
    "medium-dense": (49.2408447265625, 368.8089599609375),
    "large": (3.549999952316284, 462.260009765625),
    "large-dense": (27.165931701660156, 481.5344543457031),
}
D4RL_MAZE2D = {
    "open-v0": (0.01, 20.66, 150),
    "umaze-v1": (23.85, 161.86, 300),
    "medium-v1": (13.13, 277.39, 600),
    "large-v1": (6.7, 273.99, 800),
    "open-dense-v0": (11.17817, 27.166538620695782, 150),
    "umaze-dense-v1": (68.537689, 193.66285642381482, 300),
    "medium-dense-v1": (44.264742, 297.4552547777125, 600),
    "large-dense-v1": (30.569041, 303.4857382709002, 800),
}
LEGACY_ANT, LEGACY_ANT_FORCES = 111, 84
MAZE_TITLES = {"open": "Open", "umaze": "UMaze", "medium": "Medium", "large": "Large"}
MAZE_MAPS = {"open": maps.OPEN, "umaze": maps.U_MAZE, "medium": maps.MEDIUM_MAZE, "large": maps.LARGE_MAZE}
# Start and goal cell (row, column) of AntMaze's evaluation, in the maze of the data.
ANT_CELLS = {"umaze": ((3, 1), (1, 1)), "medium": ((1, 1), (6, 6)), "large": ((1, 1), (7, 9))}
KITCHEN = {
    "complete": (("microwave", "kettle", "light switch", "slide cabinet"), 280),
    "partial": (("microwave", "kettle", "light switch", "slide cabinet"), 450),
    "mixed": (("microwave", "kettle", "bottom burner", "light switch"), 450),
}

LOCAL_SMALL = (
    "maze2d-umaze",
    "local-pointmaze-umaze",
    "local-invertedpendulum-mixed",
    "local-reacher-mixed",
    "local-hopper-mixed",
    "local-halfcheetah-mixed",
)

# V the mean of what was recorded: better than 0.8 on maze2d-umaze at quick (`aepo ablations --questions expectile`); under
# hindsight goals, to which most recorded walks do not lead, it is worse: local-pointmaze-umaze.
WALKS = {"expectile": 0.5}
DENSE = {"critic": {"discount": 0.99, "expectile": 0.7, "reward_scale": None}}
ROBOTS = DENSE | searched.ROBOTS
SPARSE_LONG = {"critic": {"discount": 0.99, "reward_scale": 0.02}}
ANTMAZE = {"critic": {"discount": 0.99, "expectile": 0.9, "reward_scale": 0.02}}

DATA_DIFFER = "D4RL's constants; data and environment versions differ from D4RL's"
VERSIONS_DIFFER = "D4RL's constants; environment version differs from D4RL's"
MINARI_STORED = "of Minari's metadata, in a third-party copy"
MEASURED_ACTORS = "0: random policy, 100: our expert actor, both measured after its training"
MEASURED_WALKS = "0: random policy, 100: noiseless way-point controller, both measured when the data are made"
REWARD_CHANGED = "gymnasium-robotics changed the reward of door, hammer and relocate in 1.2.1 under the same name"
ANT_FORCES = "its contact forces are 0 in the data (D4RL issue 143) and in evaluation"
MAP_TURNED = "one start, one goal, in the maze of the data; Minari's evaluation map is turned by 180 degrees"


def _stored(source: str, dataset_id: str) -> dict[str, Any]:
    """Where data come from that are the same in every profile."""
    return {"source": source, "dataset_ids": dict.fromkeys(PROFILES, dataset_id)}


def _collected(stem: str) -> dict[str, Any]:
    """Data that we make ourselves, with Minari ids of our own: never official ones."""
    ids = {"smoke": f"aepo/{stem}-smoke-v0", "quick": f"aepo/{stem}-v0", "full": f"aepo/{stem}-full-v0"}
    return {"source": LOCAL, "dataset_ids": ids}


def _maze_settings(size: str, dense: bool, chosen_by_search: dict[str, Any], **critic: Any) -> dict[str, Any]:
    """Settings of a point mass's maze: in large ones a longer horizon, and what the search chose; `critic`: more."""
    chosen = SPARSE_LONG["critic"] if size not in ("open", "umaze") else {}
    if dense:
        chosen = {"discount": 0.98 if size in ("open", "umaze") else 0.99, "reward_scale": None}
    return {"critic": chosen | critic} | chosen_by_search


def _evaluation_maze(size: str, goal: tuple[int, int], start: tuple[int, int] | None = None) -> dict[str, Any]:
    """Arguments of a maze with one goal "g", kept for a whole episode, and one start "r" (without: all free cells)."""
    maze = [list(row) for row in MAZE_MAPS[size]]
    maze[goal[0]][goal[1]] = "g"
    if start:
        maze[start[0]][start[1]] = "r"
    return {"maze_map": maze, "continuing_task": True, "reset_target": False}


def _point_environment(name: str) -> dict[str, Any]:
    """The official evaluation of PointMaze: one goal cell, starts in all others, reward in each step at the goal."""
    size, _, dense = name.partition("-")
    horizon, goal = MAZES[size]
    return {
        "env_id": f"PointMaze_{MAZE_TITLES[size]}{dense.title()}-v3",
        "env_kwargs": _evaluation_maze(size, goal),
        "horizon": horizon,
        "observation_keys": GOAL_KEYS,
        "dimensions": (6, 2),
        "continuing": True,
        "settings": _maze_settings(size, bool(dense), searched.POINTMAZE, hindsight=0.5),
        "note": "data: a new goal at each success; evaluation: one goal, reward in each step at it",
    }


def pointmaze() -> Iterator[dict[str, Any]]:
    for name, references in POINTMAZE.items():
        yield _point_environment(name) | {
            "name": f"pointmaze-{name}-v2",
            **_stored(MINARI, f"D4RL/pointmaze/{name}-v2"),
            "references": references,
            "scores": f"0: random policy, 100: way-point controller, {MINARI_STORED}",
        }


def antmaze() -> Iterator[dict[str, Any]]:
    for name in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"):
        size, _, kind = name.partition("-")
        start, goal = ANT_CELLS[size]
        variant = "_Diverse_GR" if kind == "diverse" and size != "umaze" else ""
        yield {
            "name": f"antmaze-{name}-v1",
            **_stored(MINARI, f"D4RL/antmaze/{name}-v1"),
            "env_id": f"AntMaze_{MAZE_TITLES[size]}{variant}-v4",
            "env_kwargs": _evaluation_maze(size, goal, start),
            "horizon": 700 if size == "umaze" else 1000,
            "observation_keys": ANT_KEYS,
            "dimensions": (31, 8),
            "scores": "those stored with the dataset, else returns only",
            "settings": ANTMAZE,
            "note": MAP_TURNED if size == "umaze" else "one start, one goal: the official evaluation map",
        }


def adroit() -> Iterator[dict[str, Any]]:
    for hand, (title, n, d, references, _) in ADROIT.items():
        for kind in ("human", "cloned", "expert"):
            yield {
                "name": f"{hand}-{kind}-v2",
                **_stored(MINARI, f"D4RL/{hand}/{kind}-v2"),
                "env_id": f"AdroitHand{title}-v1",
                "horizon": 200,
                "dimensions": (n, d),
                "references": references,
                "scores": f"0: random policy, 100: expert, {MINARI_STORED}",
                "settings": DENSE,
                "note": "" if hand == "pen" else REWARD_CHANGED,
            }


def kitchen() -> Iterator[dict[str, Any]]:
    for kind, (subtasks, horizon) in KITCHEN.items():
        yield {
            "name": f"kitchen-{kind}-v2",
            **_stored(MINARI, f"D4RL/kitchen/{kind}-v2"),
            "env_id": "FrankaKitchen-v1",
            "env_kwargs": {
                "tasks_to_complete": list(subtasks),
                "remove_task_when_completed": True,
                "terminate_on_tasks_completed": True,
            },
            "horizon": horizon,
            "observation_keys": ("observation",),
            "dimensions": (59, 9),
            "references": (0.0, 4.0),
            "scores": "25 a completed subtask of four, as in D4RL",
            "recorded_return": "max",
            "settings": DENSE,
            "note": "the recorded reward counts the subtasks that are complete in a step, evaluation counts each once",
        }


def mujoco() -> Iterator[dict[str, Any]]:
    for robot, (title, n, d, horizon) in LOCOMOTION.items():
        simple = robot in ("hopper", "halfcheetah", "walker2d", "ant", "humanoid")
        for tier in ("simple", "medium", "expert") if simple else ("medium", "expert"):
            yield {
                "name": f"mujoco-{robot}-{tier}-v0",
                **_stored(MINARI, f"mujoco/{robot}/{tier}-v0"),
                "env_id": f"{title}-v5",
                "horizon": horizon,
                "dimensions": (n, d),
                "references": D4RL_LOCOMOTION.get(robot),
                "scores": DATA_DIFFER if robot in D4RL_LOCOMOTION else "no reference scores: returns only",
                "settings": ROBOTS,
            }


def d4rl() -> Iterator[dict[str, Any]]:
    def row(name: str, dimensions: tuple[int, int], references: tuple[float, float], horizon: int, **more: Any):
        return {
            "name": f"d4rl-{name}",
            **_stored(D4RL, f"aepo/d4rl/{name}"),
            "env_id": None,
            "horizon": horizon,
            "dimensions": dimensions,
            "references": references,
            "scores": VERSIONS_DIFFER,
        } | more

    for robot in ("hopper", "halfcheetah", "walker2d", "ant"):
        title, n, d, horizon = LOCOMOTION[robot]
        for kind in ("random", "medium", "medium-replay", "full-replay", "medium-expert", "expert"):
            # D4RL's ant has 84 contact forces that its MuJoCo recorded as 0: Ant-v4 without them, 84 zeros in their place.
            zeros = LEGACY_ANT_FORCES if robot == "ant" else 0
            yield row(
                f"{robot}-{kind}-v2",
                (LEGACY_ANT if robot == "ant" else n, d),
                D4RL_LOCOMOTION[robot],
                horizon,
                env_id=f"{title}-v4",
                settings=ROBOTS,
                zeros=zeros,
                note=ANT_FORCES if robot == "ant" else "",
            )
    train_only = "train-only, no score: "
    for name, (low, high, horizon) in D4RL_MAZE2D.items():
        size, dense = name.split("-")[0], "dense" in name
        yield row(
            f"maze2d-{name}",
            (4, 2),
            (low, high),
            horizon,
            continuing=True,
            settings=_maze_settings(size, dense, searched.MAZE2D, **WALKS),
            note=train_only + "D4RL's maze has other coordinates than PointMaze's; maze2d-* are its tasks made anew",
        )
    for kind in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"):
        yield row(
            f"antmaze-{kind}-v2",
            (29, 8),
            (0.0, 1.0),
            700 if kind.startswith("umaze") else 1000,
            settings=ANTMAZE,
            note=train_only + "D4RL's maze has other coordinates than AntMaze's, and its observation no goal",
        )
    for kind, (_, horizon) in KITCHEN.items():
        yield row(
            f"kitchen-{kind}-v0",
            (60, 9),
            (0.0, 4.0),
            horizon,
            settings=DENSE,
            note=train_only + "D4RL's kitchen observes 60 numbers (with its goal), FrankaKitchen-v1 59 others",
        )
    for hand, (title, n, d, _, references) in ADROIT.items():
        for kind in ("human", "cloned", "expert"):
            yield row(
                f"{hand}-{kind}-v1",
                (n, d),
                references,
                100 if hand == "pen" else 200,
                env_id=f"AdroitHand{title}-v1",
                settings=DENSE,
            )


def maze2d() -> Iterator[dict[str, Any]]:
    for size in ("umaze", "medium", "large"):
        for kind in ("", "Dense"):
            name = f"{size}-dense" if kind else size
            yield {
                "name": f"maze2d-{name}",
                **_collected(f"maze2d/{name}"),
                "env_id": f"aepo/Maze2D-{MAZE_TITLES[size]}{kind}-v0",
                "horizon": MAZES[size][0],
                "dimensions": (4, 2),
                "continuing": True,
                "recipe": "waypoint",
                "scores": MEASURED_WALKS,
                "settings": _maze_settings(size, bool(kind), searched.MAZE2D, **WALKS),
            }


SHORT_OF_EXPERT = {  # below two thirds: actors/<robot>/training.json
    robot: f"the actor behind its expert share reaches {share}% of D4RL's expert reference"
    for robot, share in (("halfcheetah", 57), ("walker2d", 24))
}


def local() -> Iterator[dict[str, Any]]:
    for name in POINTMAZE:
        yield _point_environment(name) | {
            "name": f"local-pointmaze-{name}",
            **_collected(f"local/pointmaze-{name}"),
            "recipe": "pointmaze",
            "scores": MEASURED_WALKS,
        }
    for robot, (title, n, d, horizon) in LOCOMOTION.items():
        if robot in ("ant", "humanoid"):  # no actors of theirs are stored
            continue
        tiers = ["simple", "medium", "expert", "mixed", *(["medium-expert"] if robot in D4RL_LOCOMOTION else [])]
        for tier in tiers:
            weak = robot in SHORT_OF_EXPERT and "expert" in tier
            yield {
                "name": f"local-{robot}-{tier}",
                **_collected(f"local/{robot}-{tier}"),
                "env_id": f"{title}-v5",
                "horizon": horizon,
                "dimensions": (n, d),
                "recipe": "sac",
                "tier": tier,
                "references": D4RL_LOCOMOTION.get(robot),
                "scores": VERSIONS_DIFFER if robot in D4RL_LOCOMOTION else MEASURED_ACTORS,
                "settings": ROBOTS,
                "note": SHORT_OF_EXPERT[robot] if weak else "",
            }


SUITES = {
    "pointmaze": pointmaze,
    "antmaze": antmaze,
    "adroit": adroit,
    "kitchen": kitchen,
    "mujoco": mujoco,
    "d4rl": d4rl,
    "maze2d": maze2d,
    "local": local,
}


def rows() -> Iterator[dict[str, Any]]:
    """Keyword arguments of every task, in the order of the suites."""
    for suite, make in SUITES.items():
        for row in make():
            yield {"suite": suite} | row
