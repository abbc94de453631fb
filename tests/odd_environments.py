"""Environments as users may write them: a point pushed by two actions, in an asymmetric box, with one oddity each."""

import gymnasium as gym
import numpy as np

LOW, HIGH = (-2.0, -0.1), (0.5, 3.0)


class Odd(gym.Env):
    """`kind` names what is odd from step 20 on, or in reset."""

    def __init__(self, kind="ok", low=LOW, high=HIGH, dtype="float32"):
        self.kind = kind
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = gym.spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=np.dtype(dtype).type)
        if kind == "no start":
            raise FileNotFoundError("model.xml")

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = self.np_random.normal(size=3), 0
        if self.kind == "no reset":
            raise RuntimeError("the simulator\ndid not start")
        if self.kind == "old reset":
            return self.x.copy()
        if self.kind == "whole start":
            self.x = self.x.round()
            return self.x.astype(int), {}
        return (self.x.tolist() if self.kind == "list" else self.x.copy()), {}

    def close(self):
        if self.kind == "no close":
            raise RuntimeError("it hangs on")

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is outside"
        self.steps += 1
        self.x[:2] = 0.9 * self.x[:2] + 0.1 * action
        self.x[2] = self.steps / 50
        observation, reward, info = self.x.copy(), -float((self.x[:2] ** 2).sum()), {}
        odd = self.kind if self.steps >= 20 else ""
        if odd == "raise":
            raise RuntimeError("unstable simulation")
        if odd == "exit":
            raise SystemExit(0)
        if odd == "memory":
            raise MemoryError
        if odd == "old step":
            return observation, reward, False, info
        observation = {
            "nan": observation * np.nan, "huge": observation + 1e300, "short": observation[:2], "text": list("abc"),
            "ragged": [1.0, [2.0], 3.0], "none": None, "list": observation.tolist(), "mutable": self.x,
        }.get(odd, observation)  # fmt: skip
        reward = {
            "nan reward": np.nan, "infinite reward": np.inf, "no reward": None, "two rewards": np.ones(2),
            "text reward": "1", "reward of one": np.array([reward]), "complex reward": 1j,
        }.get(odd, reward)  # fmt: skip
        successes = {"no success": None, "text success": "yes", "half success": 0.5, "success of one": np.array([True])}
        if odd in successes:
            info["success"] = successes[odd]
        return observation, reward, None if odd == "no flag" else False, False, None if odd == "no info" else info


gym.register("odd/Odd-v0", entry_point="odd_environments:Odd", max_episode_steps=50)
gym.register("odd/Class-v0", entry_point=Odd)
