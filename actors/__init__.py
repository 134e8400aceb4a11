"""The Ray actors: thin shells around the plain classes of selfplay_ray."""
