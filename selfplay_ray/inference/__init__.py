"""Turning messages into completions: the engine, the samplers, the clients in front of them."""
