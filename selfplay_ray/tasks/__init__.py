"""Self-play tasks, one file each: prompts, moves, rewards."""
