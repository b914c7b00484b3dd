"""The one exception by which the models tell a user what to fix."""


class ModelError(ValueError):
    """A mistake in what was asked of a model; its message is one sentence that says what to do."""
