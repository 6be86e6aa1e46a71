"""What the agents that stable-baselines3 trains have in common; each of them is a thin file beside this folder."""
