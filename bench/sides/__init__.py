"""The processes that cases start besides the jobs themselves; each prints its measurements as one line of JSON."""
