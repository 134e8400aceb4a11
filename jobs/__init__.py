"""Scripts to run here (`python jobs/…`) or to hand to `ray job submit`."""
