"""Copies of a task's environment for rollouts, in this process or in several: only those asked for are stepped."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from aepo import environments
from aepo.data.tasks import Task
from aepo.files import StudyError

# Environments with heavy steps. On 2 busy cores a second process did not pay; that it does from 4 on is not measured.
HEAVY = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "Walker2d", "AntMaze", "FrankaKitchen", "AdroitHand", "Pusher")
LEAST_CORES = 4


@dataclass(frozen=True)
class Steps:
    """What a step of several copies gave: observation `(K, n)`, reward, ended `(K,)`, success 0, 1 or NaN `(K,)`."""

    observation: np.ndarray
    reward: np.ndarray
    ended: np.ndarray
    success: np.ndarray


class Copies:
    """`count` copies of a task's environment in this process; errors as `environments.make`."""

    def __init__(self, task: Task, count: int):
        self.envs = [environments.make(task) for _ in range(count)]
        self.action_dim = self.envs[0].action_space.shape[0]

    def __len__(self) -> int:
        return len(self.envs)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """First observations `(count, n)`."""
        return np.stack([env.reset(seed=int(seed))[0] for env, seed in zip(self.envs, seeds, strict=True)])

    def step(self, which: Sequence[int], actions: np.ndarray) -> Steps:
        """One step of the copies `which`; actions `(K, d)`."""
        observation, reward, ended, success = [], [], [], []
        for i, action in zip(which, actions, strict=True):
            o, r, terminated, truncated, info = self.envs[i].step(action)
            observation.append(o)
            reward.append(r)
            ended.append(terminated or truncated)
            success.append(float(info["success"]) if "success" in info else np.nan)
        return Steps(np.stack(observation), np.array(reward), np.array(ended), np.array(success))

    def close(self) -> None:
        """Release what the environments hold."""
        for env in self.envs:
            env.close()


def _serve(connection: Connection, task: Task, count: int) -> None:
    """A worker: answers (name, arguments) with (True, result) or (False, error) until its parent is gone."""
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        try:
            copies = Copies(task, count)
        except Exception as error:
            connection.send((False, error))
            return
        connection.send((True, copies.action_dim))
        while True:
            name, arguments = connection.recv()
            try:
                connection.send((True, getattr(copies, name)(*arguments)))
            except Exception as error:
                connection.send((False, error))


class SpreadCopies:
    """The same as `Copies`, its copies dealt out to `processes` worker processes that end with this one."""

    def __init__(self, task: Task, count: int, processes: int):
        self.parts = np.array_split(np.arange(count), min(processes, count))
        context = mp.get_context("spawn")
        self.connections, self.workers = [], []
        for part in self.parts:
            here, there = context.Pipe()
            worker = context.Process(target=_serve, args=(there, task, len(part)), daemon=True)
            worker.start()
            there.close()
            self.connections.append(here)
            self.workers.append(worker)
        try:
            self.action_dim, *_ = [self._receive(c) for c in self.connections]
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @staticmethod
    def _receive(connection: Connection):
        try:
            well, answer = connection.recv()
        except EOFError:
            raise StudyError(
                "a process that steps environments has ended by itself (out of memory?): use fewer episodes at once"
            ) from None
        if not well:
            raise answer
        return answer

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """As `Copies.reset`."""
        for part, connection in zip(self.parts, self.connections, strict=True):
            connection.send(("reset", ([seeds[i] for i in part],)))
        return np.concatenate([self._receive(c) for c in self.connections])

    def step(self, which: Sequence[int], actions: np.ndarray) -> Steps:
        """As `Copies.step`."""
        which = np.asarray(which)
        asked = []
        for part, connection in zip(self.parts, self.connections, strict=True):
            mine = np.flatnonzero((which >= part[0]) & (which <= part[-1]))
            if len(mine):
                connection.send(("step", (which[mine] - part[0], actions[mine])))
                asked.append((mine, connection))
        order = np.argsort(np.concatenate([mine for mine, _ in asked]))
        answers = [self._receive(connection) for _, connection in asked]
        return Steps(*(np.concatenate([getattr(a, f) for a in answers])[order] for f in Steps.__dataclass_fields__))

    def close(self) -> None:
        """End the workers."""
        for connection in self.connections:
            connection.close()
        for worker in self.workers:
            worker.join(timeout=5)
            if worker.is_alive():
                worker.kill()
                worker.join()


def make_copies(task: Task, count: int, processes: int | None = None) -> Copies | SpreadCopies:
    """Copies in this process, or spread over the cores where steps are heavy and cores are many; `processes` decides it."""
    if processes is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        heavy = bool(task.env_id) and task.env_id.startswith(HEAVY)
        processes = min(cores, count) if heavy and cores >= LEAST_CORES else 1
    return SpreadCopies(task, count, processes) if processes > 1 else Copies(task, count)
