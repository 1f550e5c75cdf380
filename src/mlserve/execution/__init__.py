"""Calling the user's hooks: the pipeline's stages, the threads they run in, and the replicas."""
