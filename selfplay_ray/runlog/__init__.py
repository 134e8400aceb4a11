"""What a run leaves in its folder, sends elsewhere if asked to, and shows while it goes on."""
