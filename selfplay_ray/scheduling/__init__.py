"""Who plays what, where and when: pace, messages, workers, and what is run again when one is lost."""
