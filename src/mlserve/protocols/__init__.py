"""Further protocols to ask the models by, given to `ModelServer.use`; each is opt-in."""
