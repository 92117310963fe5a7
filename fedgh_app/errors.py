"""How a run can end early. What a user got wrong is a `fedgh_app.pose.errors.UserError`."""


class RunFailed(RuntimeError):
    """The run cannot go on; the message is one line that says why."""
