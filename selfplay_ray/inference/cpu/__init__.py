"""The forward pass on a CPU, in NumPy: MLX computes there value by value what NumPy computes sixteen at a time."""
