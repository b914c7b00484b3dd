"""The one exception by which the builders tell a user what to mend."""


class DatasetError(ValueError):
    """A mistake in what was asked of a dataset or found in its archives; its message is one sentence on what to do."""
