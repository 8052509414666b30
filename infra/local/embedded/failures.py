"""What can keep the embedded services from running, said in one line with the way out."""


class StackError(Exception):
    """The stack cannot start or go on; `way_out` says what the person in front of it can do."""

    def __init__(self, problem: str, way_out: str = "") -> None:
        super().__init__(f"{problem}: {way_out}" if way_out else problem)
        self.problem = problem
        self.way_out = way_out
