"""One episode in Gymnasium with a trained policy of the study, and its score."""

import gymnasium as gym

from aepo import Policy

policy, env = Policy.load("policies/local-halfcheetah-mixed"), gym.make("HalfCheetah-v5")
(state, _), total, ended = env.reset(seed=0), 0.0, False
while not ended:
    state, reward, terminated, truncated, _ = env.step(policy.act(state))
    total, ended = total + reward, terminated or truncated
low, high = -303.739, 9029.67  # returns of score 0 and 100, from the card
print(f"return {total:.0f}, score {100 * (total - low) / (high - low):.0f}")
