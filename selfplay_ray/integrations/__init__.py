"""Other people's environments as episodes; each needs an extra of its name."""
