"""What a person at the command line can put right: raised before anything started, in any module."""


class UsageError(ValueError):
    """A wrong argument or a wrong combination of arguments: jobs exit with 2 and nothing was started."""
