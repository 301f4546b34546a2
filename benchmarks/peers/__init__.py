"""Other people's trainers of the same models, each in an environment of its own, measured by the same rules."""
