"""Effects: what a step does outside the process, behind ports."""
