"""A person as part of an episode: asked wherever the episode plays, answering where the run was started.

A *desk* in the process of the run keeps the questions; workers bring theirs over HTTP, whatever process or machine they
are in. The person answers in a browser, over the same HTTP, or in the run's terminal. What nobody answers in time is an
abstention. Nothing a person says has tokens, so none of it can become training data.
"""
