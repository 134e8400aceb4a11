"""The forward pass on a CPU, where MLX computes value by value: in NumPy, and compiled where that is too slow."""
