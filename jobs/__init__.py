"""Entry points: one thin job per step of the flow; each module docstring is the exact command."""
